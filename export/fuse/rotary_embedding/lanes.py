"""Channels in pairs: the two halves (or the even and odd channels) of a tensor's last axis, taken apart and joined.

A *lane* is one half of a base tensor's channels; a *join* puts two lanes' results back. Every RoPE spelling is made of
these two and arithmetic between them.
"""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from export.graph.values import array, attribute, dim, dims, integers, made_by, rank

Pairing = Literal["half", "interleaved"]


@dataclass(frozen=True)
class Lane:
    """Half of the channels of `base`: the first or second half, or the even (0) or odd (1) ones."""

    base: ir.Value
    pairing: Pairing
    index: int


@dataclass(frozen=True)
class Join:
    """Two tensors put together on the channels: one after the other, or alternating."""

    pairing: Pairing
    first: ir.Value
    second: ir.Value


def last_axis(node: ir.Node, axis: int) -> bool:
    """Says whether `axis` is the last axis of a node's first output."""
    length = rank(node.outputs[0])
    return axis == -1 or (length is not None and axis == length - 1)


def slice_of_last(value: ir.Value | None) -> tuple[ir.Value, int, int, int] | None:
    """Reads a Slice (or one part of a Split) of the last axis; returns (base, start, end, step) within 0..width."""
    split = made_by(value, "Split")
    if split is not None and value is not None:
        base, width = split.inputs[0], dim(split.inputs[0], -1)
        part = dim(value, -1)
        if base is None or not isinstance(width, int) or not isinstance(part, int):
            return None
        if not last_axis(split, attribute(split, "axis", 0)):
            return None
        sizes = [dim(v, -1) for v in split.outputs[: value.index()]]
        if not all(isinstance(s, int) for s in sizes):
            return None
        start = sum(int(s) for s in sizes if s is not None)
        return base, start, start + part, 1
    node = made_by(value, "Slice")
    if node is None:
        return None
    base, width = node.inputs[0], dim(node.inputs[0], -1)
    starts, ends = integers(node.inputs[1]), integers(node.inputs[2])
    axes = integers(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else (1,)
    if base is None or not isinstance(width, int) or starts is None or ends is None or steps is None or axes is None:
        return None
    if not len(starts) == len(ends) == len(axes) == len(steps) == 1 or not last_axis(node, axes[0]) or steps[0] < 1:
        return None
    start, end, step = slice(starts[0], ends[0], steps[0]).indices(width)
    return base, start, end, step


def lane(value: ir.Value | None) -> Lane | None:
    """Returns which lane of which tensor a value is, or None."""
    piece = slice_of_last(value)
    if piece is not None:
        base, start, end, step = piece
        width = dim(base, -1)
        if not isinstance(width, int) or width % 2:
            return None
        if step == 1 and (start, end) in ((0, width // 2), (width // 2, width)):
            return Lane(base, "half", 1 if start else 0)
        if step == 2 and start in (0, 1) and end >= width - 1 + start:
            return Lane(base, "interleaved", start)
        return None
    return _picked(value)


def _picked(value: ir.Value | None) -> Lane | None:
    """A lane picked by index from channels reshaped to [.., D/2, 2] (alternating) or [.., 2, D/2] (halves)."""
    gather = made_by(value, "Gather")
    if gather is not None:
        index = array(gather.inputs[1])
        if index is None or index.size != 1 or index.ndim:
            return None
        return _pick(gather.inputs[0], attribute(gather, "axis", 0), int(index))
    squeeze = made_by(value, "Squeeze")
    axes = integers(squeeze.inputs[1]) if squeeze is not None and len(squeeze.inputs) > 1 else None
    if squeeze is None or axes is None or len(axes) != 1:
        return None
    piece = squeeze.inputs[0]
    split, cut = made_by(piece, "Split"), made_by(piece, "Slice")
    if split is not None and piece is not None and len(split.outputs) == 2 and _same_axis(piece, axes[0], split):
        return _pick(split.inputs[0], axes[0], piece.index() or 0)
    if cut is not None and len(cut.inputs) > 3:
        starts, ends, along = (integers(v) for v in cut.inputs[1:4])
        if starts is not None and ends is not None and along is not None and len(along) == 1:
            length = rank(piece) or 0
            if along[0] % length == axes[0] % length and ends[0] == starts[0] + 1:
                return _pick(cut.inputs[0], axes[0], starts[0])
    return None


def _same_axis(value: ir.Value, axis: int, split: ir.Node) -> bool:
    length = rank(value)
    return length is not None and attribute(split, "axis", 0) % length == axis % length


def _pick(paired: ir.Value | None, axis: int, index: int) -> Lane | None:
    node = made_by(paired, "Reshape")
    shape = dims(paired)
    base = node.inputs[0] if node is not None else None
    whole = dims(base)
    if base is None or shape is None or whole is None or len(shape) != len(whole) + 1 or whole[:-1] != shape[:-2]:
        return None
    axis %= len(shape)
    if shape[-1] == 2 and axis == len(shape) - 1:
        return Lane(base, "interleaved", index % 2)
    if shape[-2] == 2 and axis == len(shape) - 2:
        return Lane(base, "half", index % 2)
    return None


def join(value: ir.Value | None) -> Join | None:
    """Returns how a value is joined of two, on its last axis, or None."""
    concat = made_by(value, "Concat")
    if concat is not None:
        first, second = concat.inputs if len(concat.inputs) == 2 else (None, None)
        if first is None or second is None or not last_axis(concat, attribute(concat, "axis", 0)):
            return None
        return Join("half", first, second) if dim(first, -1) == dim(second, -1) is not None else None
    reshape = made_by(value, "Reshape")
    stacked = reshape.inputs[0] if reshape is not None else None
    stack = made_by(stacked, "Concat")
    shape, whole = dims(stacked), dims(value)
    if stack is None or shape is None or whole is None or len(stack.inputs) != 2 or len(shape) != len(whole) + 1:
        return None
    axis = attribute(stack, "axis", 0) % len(shape)
    if shape[:-2] != whole[:-1] or axis < len(shape) - 2 or shape[axis] != 2:
        return None
    first, second = (_unsqueezed(v, axis, len(shape)) for v in stack.inputs)
    if first is None or second is None:
        return None
    return Join("interleaved" if axis == len(shape) - 1 else "half", first, second)


def _unsqueezed(value: ir.Value | None, axis: int, length: int) -> ir.Value | None:
    node = made_by(value, "Unsqueeze")
    axes = integers(node.inputs[1]) if node is not None else None
    if node is not None and axes is not None and len(axes) == 1 and axes[0] % length == axis:
        return node.inputs[0]
    reshape = made_by(value, "Reshape")
    inner = reshape.inputs[0] if reshape is not None else None
    shape, narrow = dims(value), dims(inner)
    if shape is not None and narrow is not None and shape[:axis] + shape[axis + 1 :] == narrow and shape[axis] == 1:
        return inner
    return None
