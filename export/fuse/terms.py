"""What the other input of a step means: a hidden key, the row's own maximum, a floor, columns of padding."""

from dataclasses import dataclass
from math import inf

import onnx_ir as ir

from export.fuse.scores import Stage
from export.graph.values import attribute, dims, inputs_of, integers, made_by, rank, reduced_axes, uniform

_ABSORBS = -1e30
"""A number below this swallows any score that is added to it, in the types that hold it."""


def fill_of(term: ir.Value, *, first: bool) -> Stage | None:
    """Returns the fill that adding `term` is, or None.

    Adding where(c, 0, -inf) fills with -inf where c does not hold. So does the smallest finite number of float32, which
    swallows every score; but only on scores that hold nothing as deep yet, for twice that number is -inf.
    """
    node = made_by(term, "Where")
    if node is None:
        return None
    condition, chosen, otherwise = inputs_of(node, 3)
    fills = uniform(chosen), uniform(otherwise)
    if 0.0 not in fills or fills[0] is None or fills[1] is None:
        return None
    fill = min(fills[0], fills[1])
    swallows = first and fill <= _ABSORBS and term.dtype != ir.DataType.FLOAT16
    return Stage("fill", condition, fills[0] == 0.0, fill) if fill == -inf or swallows else None


@dataclass(frozen=True)
class Maximum:
    """The maximum of scores over one axis, counted from the right, and the nodes that compute it from them."""

    nodes: tuple[ir.Node, ...]
    axis: int


def maximum_of(scores: ir.Value, value: ir.Value) -> Maximum | None:
    """Returns what `value` is if it is the maximum of `scores` along one axis, kept as an axis of one; else None."""
    base, after = _uncast(scores), []
    step = made_by(value, "Cast", "Identity", "Unsqueeze", "Reshape")
    while step is not None:
        after.append(step)
        value = inputs_of(step, 1)[0]
        step = made_by(value, "Cast", "Identity", "Unsqueeze", "Reshape")
    node = made_by(value, "ReduceMax")
    shape = dims(scores)
    if node is None or shape is None or _uncast(inputs_of(node, 1)[0]) is not base:
        return None
    axes = reduced_axes(node)
    end = (after[0] if after else node).outputs[0]
    if axes is None or len(axes) != 1 or dims(end) != (*shape[: axes[0]], 1, *shape[axes[0] :][1:]):
        return None
    casts = _casts(inputs_of(node, 1)[0])
    return Maximum((node, *after, *casts), axes[0] - len(shape))


def _casts(value: ir.Value | None) -> list[ir.Node]:
    """The Casts between a maximum and the scores both it and the difference read; each has no other reader."""
    found = []
    while (cast := made_by(value, "Cast")) is not None and len(cast.outputs[0].uses()) == 1:
        found.append(cast)
        value = cast.inputs[0]
    return found


def _uncast(value: ir.Value | None) -> ir.Value | None:
    while (cast := made_by(value, "Cast", "Identity")) is not None:
        value = cast.inputs[0]
    return value


def floor_of(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Returns the scores and the floor of a Max or Clip that changes no finite score, its floor being the smallest."""
    values = [v for v in node.inputs if v is not None]
    if node.op_type not in ("Max", "Clip") or len(values) != 2 or (node.op_type == "Clip" and node.inputs[1] is None):
        return None
    for side, other in (values, values[::-1]) if node.op_type == "Max" else (values,):
        floor, dtype = uniform(other), side.dtype
        if floor is not None and dtype is not None and dtype != ir.DataType.FLOAT16 and floor <= float(dtype.min):
            return side, floor
    return None


def padding_of(node: ir.Node) -> tuple[int, int, float] | None:
    """Returns (columns before, columns behind, their number) of a Pad along its last axis alone, or None."""
    mode = node.attributes.get("mode")
    pads, length = integers(node.inputs[1]), rank(node.inputs[0])
    number = uniform(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
    axes = integers(node.inputs[3]) if len(node.inputs) > 3 else None
    if pads is None or length is None or number is None or (mode is not None and mode.as_string() != "constant"):
        return None
    places = tuple(range(length)) if axes is None else tuple(axis % length for axis in axes)
    at = dict(zip(places, zip(pads[: len(places)], pads[len(places) :], strict=True), strict=True))
    front, back = at.pop(length - 1, (0, 0))
    plain = min(front, back) >= 0 and not any(x for pair in at.values() for x in pair)
    return (front, back, number) if plain else None


def cut_off(node: ir.Node) -> tuple[int, int] | None:
    """Returns how many columns a Slice cuts off in front and behind, where it does nothing else."""
    bounds = [integers(value) for value in node.inputs[1:]]
    length = rank(node.inputs[0])
    if len(bounds) < 3 or length is None or any(b is None or len(b) != 1 for b in bounds):
        return None
    start, stop, axis, *step = (b[0] for b in bounds if b is not None)
    if axis % length != length - 1 or step not in ([], [1]):
        return None
    if start >= 0 and stop > 1 << 30:
        return start, 0
    return (0, -stop) if start == 0 and stop < 0 else None


def axis_from_right(node: ir.Node, default: int) -> int:
    """Returns a node's axis attribute counted from the right; one that cannot be told is an axis no scores have: 0."""
    axis, length = attribute(node, "axis", default), rank(node.outputs[0])
    return axis if axis < 0 else 0 if length is None else axis - length
