"""Law: keys and values concatenated behind those of earlier calls are the past and present of one Attention.

`Attention(q, concat(pk, k), concat(pv, v)) == Attention(q, k, v, past_key=pk, past_value=pv)`, and the op gives the
concatenations as present_key and present_value. It holds at every length, an empty past included, as long as no rule
of the op counts positions from its first key (is_causal, windows): such a node stays as it is.

Written only where nothing has to be moved for it: the concatenation is on the key axis of [B, Hkv, T, D], or of
[B*Hkv, T, D] and [B, T, D] that are reshaped afterwards. Measured on ONNX Runtime 1.31's CPU (one new token, 512 cached
ones, 8 heads of 64): 0.082 ms against 0.090 ms for Concat and Attention. A cache of [B, T, H, D] would take Transposes
that cost more than is saved (0.233 ms against 0.176 ms), so it stays in front of the op; and so does one whose keys are
stored transposed, packed with the values, or written into a buffer.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import attribute, dims, made_by, rank, uniform

_INT = ir.DataType.INT64
_MOVES = (
    "Cast", "DequantizeLinear", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
"""What may be done to a cache between the graph's input and the concatenation: it is moved, not computed."""


@dataclass(frozen=True)
class _Cached:
    """Keys or values: `whole = concat(past, new)`, and the Reshape or Unsqueeze to four axes after it, or None."""

    whole: ir.Value
    past: ir.Value
    new: ir.Value
    placed: ir.Node | None


def absorb_caches(graph: ir.Graph, refused: Container[str | None] = ()) -> list[ir.Node]:
    """Gives each Attention of `graph` the cache that stands before it; returns those that got one.

    Args:
        graph: With shapes inferred and unused nodes removed: a dead reader of a concatenation would count as one.
        refused: Names of the nodes to leave as they are.
    """
    order = {node: at for at, node in enumerate(graph)}
    absorbed = []
    for node in list(graph):
        ours = node.op_type == "Attention" and node.domain == "" and node.name not in refused
        if ours and _absorb(node, order):
            absorbed.append(node)
    if absorbed:
        graph.sort()  # what else reads a concatenation may stand before the op that now makes it
    return absorbed


def _absorb(attention: ir.Node, order: Mapping[ir.Node, int]) -> bool:
    if any(v is not None for v in attention.inputs[4:]) or any(v.name for v in attention.outputs[1:3]):
        return False
    counted = (("is_causal", 0), ("left_window_size", -1), ("right_window_size", -1))
    if any(attribute(attention, name, default) != default for name, default in counted):
        return False
    key, value = _cached(attention.inputs[1]), _cached(attention.inputs[2])
    if key is None or value is None or key.whole is value.whole or not _one_length(key, value):
        return False
    mask = attention.inputs[3] if len(attention.inputs) > 3 else None
    columns = dims(mask)
    if columns and columns[-1] == 1:  # one column for all keys: with a past it is not told from one key
        return False
    shown = len(attention.outputs) > 3 and attention.outputs[3].name
    if shown and not all(
        _wanted(half, old, attention)
        for half, old in ((key, attention.inputs[1]), (value, attention.inputs[2]))
        if old is not None
    ):
        return False  # ONNX's shape inference counts the past into the weights only beside both present outputs
    ways = {step for half in (key, value) for step in (half.whole.producer(), half.placed) if step is not None}
    if any(step not in order for step in ways):  # the graph around a body cannot read what the body makes
        return False
    if not all(_comes_after(half, attention, ways, order) for half in (key, value)):
        return False
    _write(attention, key, value)
    return True


def _cached(value: ir.Value | None) -> _Cached | None:
    """Reads K or V [B, Hkv, T, D] as a concatenation whose first part comes from outside the graph."""
    shape = dims(value)
    placed = made_by(value, "Reshape", "Unsqueeze")
    whole = value if placed is None else placed.inputs[0]
    concat = made_by(whole, "Concat")
    if shape is None or len(shape) != 4 or concat is None or whole is None or len(concat.inputs) != 2:
        return None
    inner = dims(whole)
    if inner is None or inner[-2:] != shape[-2:] or (placed is not None and len(inner) != 3):
        return None
    if attribute(concat, "axis", 0) not in (-2, len(inner) - 2):
        return None
    past, new = concat.inputs
    if past is None or new is None or rank(past) != len(inner) or rank(new) != len(inner) or not _given(past):
        return None
    if uniform(new) is not None:  # the row of zeros of a sink is no new key
        return None
    return _Cached(whole, past, new, placed)


def _given(value: ir.Value) -> bool:
    """Says whether a tensor is an input of its graph, at most moved."""
    current: ir.Value | None = value
    for _ in range(16):
        if current is None or current.producer() is None:
            return current is not None and current.is_graph_input()
        node = made_by(current, *_MOVES)
        if node is None:
            return False
        current = node.inputs[0]
    return False


def _one_length(key: _Cached, value: _Cached) -> bool:
    """The op takes one past length: two are equal by name, or their new parts are (the wholes are equal anyway)."""
    pairs = ((key.past, value.past), (key.new, value.new))
    lengths = [((dims(a) or (None, None))[-2], (dims(b) or (None, None))[-2]) for a, b in pairs]
    return any(a is not None and a == b for a, b in lengths)


def _comes_after(half: _Cached, attention: ir.Node, ways: set[ir.Node], order: Mapping[ir.Node, int]) -> bool:
    """Says whether nothing that the attention needs reads the whole, other than for its size."""
    waiting = [user for v in (half.whole, *_outputs(half.placed)) for user, _ in v.uses() if user not in ways]
    waiting = [user for user in waiting if user is not attention and user.op_type != "Shape"]
    limit, seen = order[attention], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        if node is attention or node not in order:  # a reader inside a body: the body's node may be anywhere
            return False
        if node in seen or order[node] > limit:
            continue
        seen.add(node)
        waiting += [user for output in node.outputs for user, _ in output.uses()]
    return True


def _outputs(node: ir.Node | None) -> tuple[ir.Value, ...]:
    return () if node is None else tuple(node.outputs)


def _write(attention: ir.Node, key: _Cached, value: _Cached) -> None:
    build = Builder(attention, f"{attention.name}/cache")
    attention.resize_inputs(max(6, len(attention.inputs)))
    for at, half in ((1, key), (2, value)):
        for measured in (half.whole, *_outputs(half.placed)):
            for node in [user for user, _ in measured.uses() if user.op_type == "Shape"]:
                _measure_parts(node, measured, half)
        old = attention.inputs[at]
        attention.replace_input_with(at, _four_axes(build, half, half.new))
        attention.replace_input_with(at + 3, _four_axes(build, half, half.past))
        if old is not None and _wanted(half, old, attention):
            _present(attention, at, half, old)


def _wanted(half: _Cached, old: ir.Value, attention: ir.Node) -> bool:
    """Says whether anything reads the whole of keys or values but the attention and what asks for its shape."""
    ways = {attention, half.placed}
    readers = [user for v in (half.whole, old) for user, _ in v.uses() if user not in ways and user.op_type != "Shape"]
    return bool(readers) or half.whole.is_graph_output() or old.is_graph_output()


def _read(value: ir.Value, way: ir.Node | None) -> bool:
    return value.is_graph_output() or any(user is not way for user, _ in value.uses())


def _present(attention: ir.Node, at: int, half: _Cached, old: ir.Value) -> None:
    """Lets the op's present take the place of the concatenation for whoever else reads it."""
    missing = at + 1 - len(attention.outputs)
    if missing > 0:
        attention.resize_outputs(at + 1)
        for output in attention.outputs[-missing:]:
            output.name = ""
    present = attention.outputs[at]
    present.name, present.shape = f"{attention.name}_present_{at}", old.shape
    present.type = None if old.dtype is None else ir.TensorType(old.dtype)
    take_place(old, present)
    if half.placed is not None and (half.whole.is_graph_output() or _read(half.whole, half.placed)):
        build = Builder(attention, f"{attention.name}/cache/{at}")
        rest = build("Shape", present, dtype=_INT, start=2)
        first = build("Shape", half.new, dtype=_INT, start=0, end=1)
        target = build("Concat", first, rest, dtype=_INT, axis=0)
        back = build("Reshape", present, target, dtype=old.dtype, shape=half.whole.shape, allowzero=1)
        take_place(half.whole, back)


def _four_axes(build: Builder, half: _Cached, part: ir.Value) -> ir.Value:
    """Returns the past or the new part as the whole was placed: [B, Hkv, T, D]."""
    if half.placed is None:
        return part
    placed, own = dims(half.placed.outputs[0]), dims(part)
    if placed is None:
        raise TypeError("a Reshape that places a cache has a known shape")
    shape = None if own is None else ir.Shape((*placed[:2], *own[-2:]))
    if half.placed.op_type == "Unsqueeze":
        return build("Unsqueeze", part, half.placed.inputs[1], dtype=part.dtype, shape=shape)
    known = next(d for d in placed[:2] if isinstance(d, int))
    rest = build("Shape", part, dtype=_INT, start=0, end=1)
    other = build("Div", rest, build.axes(known), dtype=_INT)
    lead = (build.axes(known), other) if placed[0] == known else (other, build.axes(known))
    tail = build("Shape", part, dtype=_INT, start=1)
    target = build("Concat", *lead, tail, dtype=_INT, axis=0)
    return build("Reshape", part, target, dtype=part.dtype, shape=shape, allowzero=1)  # an empty past is no -1


def _measure_parts(node: ir.Node, measured: ir.Value, half: _Cached) -> None:
    """Law: the size of a concatenation is the sum of its parts' on that axis, and theirs on every other."""
    build = Builder(node, node.name or str(node.outputs[0].name))
    past, new = half.past, half.new
    if measured is not half.whole:
        past, new = _four_axes(build, half, past), _four_axes(build, half, new)
    length = rank(measured) or 4
    end = node.attributes.get("end")
    axes = range(length)[attribute(node, "start", 0) : None if end is None else end.as_int()]

    def size(part: ir.Value) -> ir.Value:
        return build("Shape", part, dtype=_INT, start=axes.start, end=axes.stop)

    sizes = size(new)
    if length - 2 in axes:
        added = size(past)
        if len(axes) > 1:
            along = build.constant(np.asarray([axis == length - 2 for axis in axes], np.int64))
            added = build("Mul", added, along, dtype=_INT)
        sizes = build("Add", sizes, added, dtype=_INT, shape=node.outputs[0].shape)
    take_place(node.outputs[0], sizes)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
