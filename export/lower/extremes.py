"""Rows without any key: -inf and the lowest number, for targets that do not give ONNX's answer on them.

ONNX gives 0 where every key of a row is hidden by a bool mask or -inf, and the mean of V where every key carries the
same finite number, however low. With u the type's lowest finite number, two levels keep these apart on any target: u
hides a key, u/2 is the lowest that a finite mask keeps; rows in which all keys are hidden are set to 0 afterwards.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import array
from export.lower.bounds import bound
from export.lower.call import Call
from export.lower.heads import split
from export.lower.shapes import broadcast
from export.lower.step import Step
from export.lower.targets import Target

_BOOL = ir.DataType.BOOL
_FLOOR, _RAISED = 0.5, 0.75
"""Fractions of the lowest number: the floor of finite masks, and what stands for the lowest where it means -inf."""


def lower_extremes(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Rewrites -inf and the lowest number in the masks as the row needs it."""
    if call.keep is None and call.bias is None:
        return call, ()
    call, cast = typed(call, row, build)
    steps = list(cast)
    finite = call.decomposed or not row.hides(call.dtype)
    if not finite and "lowest" not in row.mask_values and _floating(call.bias) and not _shallow(call):
        call = replace(call, bias=_raised(call.bias, build))
        why = f"{row.title} takes the lowest number for -inf and would give 0, not the mean of V, on a row full of it."
        steps.append(call.said("raise lowest", why))
    both = call.keep is not None and call.bias is not None
    as_bool = call.keep is not None and ("bool" not in row.mask_types or call.decomposed)
    if both or as_bool or (finite and not (_shallow(call) and not bound(call.bias).infinite)):
        call, step = _additive(call, row, build, finite)
        steps.append(step)
    return call, tuple(steps)


def _floating(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _shallow(call: Call) -> bool:
    """Says whether the finite numbers of the additive mask surely stay above its floor."""
    return call.bias is None or bound(call.bias).finite <= -float(call.dtype.min) * _FLOOR


def _always_some(keep: ir.Value) -> bool:
    """Says whether a constant mask leaves every row a key."""
    constant = array(keep)
    return constant is not None and bool(constant.any(-1).all())


def typed(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Casts the additive mask to Q's type; what that type cannot hold becomes its floor, and -inf stays."""
    bias, dtype = call.bias, call.dtype
    if bias is None or bias.dtype in (None, dtype):
        return call, ()
    needed = call.keep is not None or call.decomposed or call.plugin or not row.hides(dtype)
    own = bias.dtype or dtype
    if not needed and ("any float" if own.is_floating_point() else "int") in row.mask_types:
        return call, ()
    if not own.is_floating_point():
        own = ir.DataType.FLOAT
        bias = build("Cast", bias, dtype=own, shape=bias.shape, to=int(own))
    if float(own.max) > float(dtype.max) and not _shallow(call):
        floor = build("Max", bias, build.number(float(dtype.min) * _FLOOR, own), dtype=own, shape=bias.shape)
        hidden = build("Less", bias, build.number(float(own.min), own), dtype=_BOOL, shape=bias.shape)
        bias = build("Where", hidden, build.number(-np.inf, own), floor, dtype=own, shape=bias.shape)
    if own != dtype:
        bias = build("Cast", bias, dtype=dtype, shape=bias.shape, to=int(dtype))
    why = f"{row.title} is given a mask of Q's type, {dtype.name}, not one it would have to convert."
    return replace(call, bias=bias), (call.said("cast mask", why),)


def _raised(bias: ir.Value | None, build: Builder) -> ir.Value | None:
    """Returns a floating-point mask with a higher number in place of the type's lowest."""
    if bias is None or bias.dtype is None:
        return bias
    dtype, shape = bias.dtype, bias.shape
    is_lowest = build("Equal", bias, build.number(float(dtype.min), dtype), dtype=_BOOL, shape=shape)
    return build("Where", is_lowest, build.number(float(dtype.min) * _RAISED, dtype), bias, dtype=dtype, shape=shape)


def _additive(call: Call, row: Target, build: Builder, finite: bool) -> tuple[Call, Step]:
    """Makes both masks one additive mask in Q's type, and guards the rows that may have no key."""
    dtype, keep, bias = call.dtype, call.keep, call.bias
    lowest = float(dtype.min)
    infinite = bias is not None and (bound(bias).infinite or not _shallow(call))
    guarded = finite and (infinite or (keep is not None and call.may_be_empty and not _always_some(keep)))
    mask = bias
    if mask is not None and finite and infinite:
        floor = build("Max", mask, build.number(lowest * _FLOOR, dtype), dtype=dtype, shape=mask.shape)
        hidden = build("Less", mask, build.number(lowest, dtype), dtype=_BOOL, shape=mask.shape)
        mask = build("Where", hidden, build.number(lowest, dtype), floor, dtype=dtype, shape=mask.shape)
    if keep is not None:
        fill = build.number(lowest if finite else -np.inf, dtype)
        kept = build.number(0.0, dtype) if mask is None else mask
        shape = keep.shape if mask is None else broadcast(keep.shape, mask.shape)
        mask = build("Where", keep, kept, fill, dtype=dtype, shape=shape)
    attends = call.attends
    if guarded:
        # Read from the additive mask itself: the builder makes both in one kernel.
        most = build("ReduceMax", mask, build.axes(-1), dtype=dtype, keepdims=1)
        attends = build("Greater", most, build.number(lowest * _RAISED, dtype), dtype=_BOOL)
    exact = (call.keep, call.bias) if finite else call.exact
    call = replace(call, keep=None, bias=mask, exact=exact, attends=attends)
    if guarded:
        call = split(call, build)  # the rows to set to 0 are those of single heads
    why = f"{row.title} gets one additive mask in Q's type"
    if finite:
        why += ", finite because what it gives on a row of -inf is not known to be ONNX's 0"
    why += "; rows without a key are set to 0 after it." if guarded else "."
    return call, call.said("finite mask" if finite else "additive mask", why)
