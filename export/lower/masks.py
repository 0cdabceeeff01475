"""The mask's rank and broadcast axes, as the target reads them."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.errors import LoweringRefusedError
from export.graph.build import Builder
from export.graph.shapes import simplest
from export.graph.values import Dim, dim, label
from export.lower.call import Call
from export.lower.shapes import known
from export.lower.step import Step
from export.lower.targets import Target

_INT = ir.DataType.INT64


def lower_mask(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Gives the mask a rank and axes that the row accepts."""
    mask = call.keep if call.keep is not None else call.bias
    if mask is None or call.decomposed:
        return call, ()
    steps: list[Step] = []
    widened = _widened(call, mask, row, build)
    if widened is not mask:
        why = f"{row.title} does not repeat a mask along its query and key axes as ONNX does."
        steps.append(call.said("expand mask", why))
    ranked = _ranked(widened, row, build)
    if ranked is not widened:
        steps.append(call.said("unsqueeze mask", f"{row.title} is given four axes: fewer are not surely [H, S, T]."))
    if not steps:
        return call, ()
    return replace(
        call, keep=ranked if call.keep is not None else None, bias=None if call.keep is not None else ranked
    ), tuple(steps)


def refuse_ambiguous(call: Call) -> None:
    """Refuses masks that runtimes read in more than one way.

    Raises:
        LoweringRefusedError: The mask is [B, S, T], which ONNX reads as [H, S, T]; or its key axis is 1, which some
            repeat for all keys and others pad with hidden ones (as opset 24 does with a mask shorter than K).
    """
    mask = call.keep if call.keep is not None else call.bias
    shape = None if mask is None else known(mask)
    if not shape:
        return
    batch, heads = dim(call.query, 0), call.heads[0] if call.heads else dim(call.query, 1)
    if len(shape) == 3 and shape[0] not in (None, 1, heads) and (shape[0] == batch or isinstance(shape[0], int)):
        raise LoweringRefusedError(
            f"{label(call.node)} has a mask of three axes {shape}, which ONNX reads as [heads, queries, keys] with "
            f"{heads} heads; make it four axes [batch, 1, queries, keys] (mask.unsqueeze(1)) and export again."
        )
    if shape[-1] == 1 and (call.past is not None or _lengths(call)[1] != 1):
        raise LoweringRefusedError(
            f"{label(call.node)} has a mask {shape} with one column for all keys, which runtimes read in two ways "
            "(repeated, or padded with hidden keys); expand it to the number of keys and export again."
        )


def _ranked(mask: ir.Value, row: Target, build: Builder) -> ir.Value:
    rank = None if mask.shape is None else len(mask.shape)
    if rank is None or rank in row.mask_ranks:
        return mask
    missing = max(row.mask_ranks) - rank
    shape = ir.Shape([*[1] * missing, *(mask.shape or ())])
    return build("Unsqueeze", mask, build.axes(*range(missing)), dtype=mask.dtype, shape=shape)


def _widened(call: Call, mask: ir.Value, row: Target, build: Builder) -> ir.Value:
    """Repeats the mask along its last two axes where they are not provably full and the row wants them full."""
    shape = known(mask)
    queries, keys = _lengths(call)
    need_query = "query" not in row.mask_repeats and not _full(shape, -2, queries)
    totals = (keys, *(dim(present, 2) for present in call.presents if call.past is not None))
    need_key = "key" not in row.mask_repeats and not any(_full(shape, -1, total) for total in totals)
    if not (need_query or need_key or (shape is None and row.mask_ranks == {4})):
        return mask
    length = shape[-1] if shape else None
    if need_key and isinstance(keys, int) and isinstance(length, int) and length < keys:
        mask = _lengthened(mask, keys - length, build)
        need_key = False
        if not need_query:
            return mask
    axis = 1 if call.heads else 2
    one = build.axes(1)
    query_count = build("Shape", call.query, dtype=_INT, start=axis, end=axis + 1) if need_query else one
    key_count = one
    if need_key:
        key_count = build("Shape", call.key, dtype=_INT, start=axis, end=axis + 1)
        if call.past is not None:
            past = build("Shape", call.past[0], dtype=_INT, start=2, end=3)
            key_count = build("Add", past, key_count, dtype=_INT)
    leading = [one, one] if shape is None else []
    target = build("Concat", *leading, query_count, key_count, dtype=_INT, axis=0)
    full: list[Dim | None] = [None] * 4
    if shape is not None:
        padded = [*[1] * (2 - len(shape)), *shape]
        full = [*padded[:-2], queries if need_query else padded[-2], keys if need_key else padded[-1]]
    return build("Expand", mask, target, dtype=mask.dtype, shape=ir.Shape(full))


def _full(shape: list[Dim | None] | None, axis: int, wanted: Dim | None) -> bool:
    return shape is not None and len(shape) >= -axis and wanted is not None and shape[axis] == wanted


def _lengths(call: Call) -> tuple[Dim | None, Dim | None]:
    """Returns the number of queries and of keys, those of the past included."""
    axis = 1 if call.heads else 2
    keys = dim(call.key, axis)
    if call.past is None:
        return dim(call.query, axis), keys
    past = dim(call.past[0], 2)
    if isinstance(keys, int) and isinstance(past, int):
        return dim(call.query, axis), past + keys
    return dim(call.query, axis), None if None in (keys, past) else simplest(f"({past}) + ({keys})")


def _lengthened(mask: ir.Value, missing: int, build: Builder) -> ir.Value:
    """Hides the keys beyond a mask that is shorter than K, as ONNX 24 says."""
    rank = len(mask.shape or ())
    pads = build.constant(np.asarray([*[0] * (2 * rank - 1), missing], np.int64))
    dtype = mask.dtype or ir.DataType.BOOL
    fill = build.constant(np.asarray(False)) if dtype == ir.DataType.BOOL else build.number(-np.inf, dtype)
    axes = known(mask) or []
    full = [*axes[:-1], axes[-1] + missing] if axes and isinstance(axes[-1], int) else None
    return build("Pad", mask, pads, fill, dtype=dtype, shape=None if full is None else ir.Shape(full), mode="constant")
