"""Where the channels of a tensor come from: each is followed backwards, by index, through what only moves channels.

The channels are the last one or two axes of a tensor, flattened ([.., D], or [.., D/2, 2] where pairs have an axis of
their own). Halves, even and odd channels, pairs, rolled or gathered channels are all index arithmetic then: a rotation
is read from where its channels come from, not from how they were taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from export.graph.values import array, attribute, dims, integers, made_by, permutation, rank

_SAME_NUMBERS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
_LARGEST = 1 << 14
"""More channels than this are no attention head."""


@dataclass(frozen=True)
class Channels:
    """Some channels of a value.

    Attributes:
        value: The tensor.
        tail: How many of its last axes, flattened, the channels are.
        pick: Which of them, in order.
    """

    value: ir.Value
    tail: int
    pick: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The sizes of the axes that hold the channels; None where one is not known."""
        return sizes(self.value, self.tail)


def sizes(value: ir.Value, tail: int) -> tuple[int, ...] | None:
    """Returns the sizes of the last `tail` axes; None where one is not known."""
    shape = dims(value)
    if shape is None or len(shape) < tail:
        return None
    found = tuple(d for d in shape[len(shape) - tail :] if isinstance(d, int))
    return found if len(found) == tail and prod(found) <= _LARGEST else None


def lead(value: ir.Value, tail: int) -> tuple[int | str, ...] | None:
    """Returns the dimensions before the channels."""
    shape = dims(value)
    return None if shape is None else shape[: len(shape) - tail]


def everything(value: ir.Value, tail: int = 1) -> Channels | None:
    """Returns all channels of a value, in order."""
    found = sizes(value, tail)
    return None if found is None else Channels(value, tail, tuple(range(prod(found))))


def step(channels: Channels) -> tuple[Channels, ...] | None:
    """Returns where channels were before the node that made them, one after the other; None where it does more.

    Every other axis of the tensors returned is as it is in the one given.
    """
    node = channels.value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or not node.inputs or channels.sizes is None:
        return None
    if node.op_type == "Concat":
        return _joined(channels, node)
    if node.op_type == "Where":
        return _chosen(channels, node)
    source = node.inputs[0]
    before = lead(channels.value, channels.tail)
    if source is None or before is None:
        return None
    found = _moved(channels, node, source, before)
    if found is None:
        return None
    tail, positions = found
    return (Channels(source, tail, tuple(int(i) for i in positions.reshape(-1)[list(channels.pick)])),)


def operand(channels: Channels, value: ir.Value) -> Channels | None:
    """Returns which channels of one operand of a broadcasting operator some channels of its result are made of."""
    shape, out = dims(value), channels.sizes
    if shape is None or out is None:
        return None
    tail = min(len(shape), channels.tail)
    own = sizes(value, tail)
    if own is None or any(a not in (1, b) for a, b in zip(own, out[len(out) - tail :], strict=True)):
        return None
    wide = np.broadcast_to(np.arange(prod(own)).reshape((1,) * (channels.tail - tail) + own), out)
    return Channels(value, tail, tuple(int(i) for i in wide.reshape(-1)[list(channels.pick)]))


def _moved(
    channels: Channels, node: ir.Node, source: ir.Value, before: tuple[int | str, ...]
) -> tuple[int, np.ndarray] | None:
    """Returns the tail of the source, and for each channel of the result the channel of the source it is."""
    op, out = node.op_type, channels.sizes or ()
    if op in _SAME_NUMBERS:
        tail = _regrouped(source, before, prod(out))
        return None if tail is None else (tail, np.arange(prod(out)))
    tail = (rank(source) or 0) - len(before)
    own = sizes(source, tail) if tail > 0 else None
    if own is None or lead(source, tail) != before:
        return None
    numbers = np.arange(prod(own)).reshape(own)
    if op in ("Expand", "Tile"):
        if len(own) != len(out) or any(b % a for a, b in zip(own, out, strict=True)):
            return None
        repeats = [b // a for a, b in zip(own, out, strict=True)]
        whole = op == "Tile" or all(a in (1, b) for a, b in zip(own, out, strict=True))
        return (tail, np.tile(numbers, repeats)) if whole else None
    if op == "Transpose":
        perm = permutation(node)
        if perm is None or perm[: len(before)] != tuple(range(len(before))):
            return None
        return tail, numbers.transpose([axis - len(before) for axis in perm[len(before) :]])
    if op == "Gather":
        axis, index = attribute(node, "axis", 0) % (rank(source) or 1) - len(before), array(node.inputs[1])
        if axis < 0 or index is None or np.any((index >= own[axis]) | (index < -own[axis])):
            return None
        return tail, np.take(numbers, index, axis=axis, mode="wrap")
    if op == "Slice":
        return _sliced(node, numbers, tail, len(before))
    if op == "Split":
        return _split(node, channels.value, numbers, tail, len(before))
    return None


def _regrouped(source: ir.Value, before: tuple[int | str, ...], count: int) -> int | None:
    """Returns how many last axes of a reshaped tensor hold the same channels, all other axes being the same."""
    for tail in range(1, (rank(source) or 0) + 1):
        own = sizes(source, tail)
        if own is None:
            return None
        if prod(own) == count and lead(source, tail) == before:
            return tail
    return None


def _sliced(node: ir.Node, numbers: np.ndarray, tail: int, skipped: int) -> tuple[int, np.ndarray] | None:
    given = [integers(v) if v is not None else None for v in node.inputs[1:]]
    starts, ends = given[:2]
    if starts is None or ends is None:
        return None
    axes = given[2] if len(given) > 2 else tuple(range(len(starts)))
    steps = given[3] if len(given) > 3 else (1,) * len(starts)
    if axes is None or steps is None:
        return None
    window = [slice(None)] * numbers.ndim
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        at = axis % (skipped + tail) - skipped
        if at < 0:
            if (start, stride) == (0, 1) and end >= np.iinfo(np.int32).max:
                continue
            return None
        if stride == 0:
            return None
        size = numbers.shape[at]
        first, last, _ = slice(start, end, stride).indices(size)
        window[at] = slice(first, None if last < 0 else last, stride)
    return tail, numbers[tuple(window)]


def _split(
    node: ir.Node, value: ir.Value, numbers: np.ndarray, tail: int, skipped: int
) -> tuple[int, np.ndarray] | None:
    axis = attribute(node, "axis", 0) % (skipped + tail) - skipped
    parts = [dims(v) for v in node.outputs]
    if axis < 0 or any(p is None for p in parts):
        return None
    widths = [p[axis + skipped] for p in parts if p is not None]
    index = value.index() or 0
    if not all(isinstance(w, int) for w in widths):
        return None
    start = sum(int(w) for w in widths[:index])
    return tail, np.take(numbers, range(start, start + int(widths[index])), axis=axis)


def _joined(channels: Channels, node: ir.Node) -> tuple[Channels, ...] | None:
    before, out = lead(channels.value, channels.tail), channels.sizes or ()
    axis = attribute(node, "axis", 0) % (rank(channels.value) or 1) - len(before or ())
    if before is None or axis < 0:
        return None
    numbers, sources = [], []
    for at, part in enumerate(node.inputs):
        own = sizes(part, channels.tail) if part is not None else None
        if own is None or part is None or lead(part, channels.tail) != before:
            return None
        numbers.append(np.stack([np.full(own, at), np.arange(prod(own)).reshape(own)], axis=-1))
        sources.append(part)
    whole = np.concatenate(numbers, axis=axis)
    if whole.shape[:-1] != out:
        return None
    return _runs(sources, channels.tail, whole.reshape(-1, 2)[list(channels.pick)])


def _chosen(channels: Channels, node: ir.Node) -> tuple[Channels, ...] | None:
    """`Where` with a constant condition that is one for all positions: each channel comes from one of the two."""
    condition, shape = array(node.inputs[0]), dims(channels.value)
    out = channels.sizes or ()
    if condition is None or shape is None or prod(condition.shape[: -len(out)]) != 1:
        return None
    sources = [v for v in node.inputs[1:] if v is not None and dims(v) == shape]
    if len(sources) != 2:
        return None
    flat = condition.reshape(condition.shape[-len(out) :])
    first = np.broadcast_to(flat, out).reshape(-1)
    whole = np.stack([np.where(first, 0, 1), np.arange(prod(out))], axis=-1)
    return _runs(sources, channels.tail, whole[list(channels.pick)])


def _runs(sources: Sequence[ir.Value], tail: int, found: np.ndarray) -> tuple[Channels, ...]:
    """Groups (source, channel) pairs that follow each other in one source."""
    runs: list[Channels] = []
    start = 0
    for end in range(1, len(found) + 1):
        if end == len(found) or found[end, 0] != found[start, 0]:
            pick = tuple(int(i) for i in found[start:end, 1])
            runs.append(Channels(sources[int(found[start, 0])], tail, pick))
            start = end
    return tuple(runs)


def permuted_by(channels: Channels, node: ir.Node) -> tuple[Channels, tuple[int, ...]] | None:
    """Reads `x @ R` with a constant R that has one entry, 1 or -1, in each column: channels of x and their signs."""
    source, weight = node.inputs
    if source is None or weight is None or channels.tail != 1 or made_by(channels.value, "MatMul") is not node:
        return None
    shape = dims(weight)
    if shape is None or len(shape) != 2 or shape[0] != shape[1] or lead(source, 1) != lead(channels.value, 1):
        return None
    data = array(weight) if isinstance(shape[0], int) and shape[0] <= 512 else None
    if data is None or not np.array_equal(np.count_nonzero(data, axis=0), np.ones(len(data))):
        return None
    rows = np.argmax(data != 0, axis=0)
    signs = data[rows, np.arange(len(data))]
    if not np.all(np.abs(signs) == 1):
        return None
    picked = list(channels.pick)
    return Channels(source, 1, tuple(map(int, rows[picked]))), tuple(map(int, signs[picked]))
