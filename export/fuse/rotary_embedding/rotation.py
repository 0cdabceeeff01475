"""Reads rotary position embeddings in their finite set of spellings and writes `ai.onnx::RotaryEmbedding`.

    whole tensors:  x * cos + rotate(x) * sin,  rotate(x) = join(-x1, x0)       (halves or pairs, xpos factors too)
    lane by lane:   join(x0 * cos - x1 * sin,  x1 * cos + x0 * sin)             (complex numbers as pairs, pre-split)

A factor that is not x belongs to a table, so xpos scales fold into cos and sin. A block is an identity by itself:
attention fuses whether or not its RoPE was read.
"""

from dataclasses import dataclass

import onnx_ir as ir

from export.fuse.rotary_embedding.lanes import Pairing, join, lane
from export.graph.values import made_by, same, uniform


@dataclass(frozen=True)
class Rotation:
    """A rotation as it was read.

    Attributes:
        x: What is rotated; all of its channels are.
        pairing: Which channels form a pair.
        cos: The factors of the cosine table.
        sin: The factors of the sine table.
        narrow: The tables have half the channels already.
        sign: -1 where the spelling rotates the other way.
        result: The rotated tensor.
    """

    x: ir.Value
    pairing: Pairing
    cos: tuple[ir.Value, ...]
    sin: tuple[ir.Value, ...]
    narrow: bool
    sign: int
    result: ir.Value


def read_rotation(node: ir.Node) -> Rotation | None:
    """Returns the rotation a node completes, or None."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    if node.op_type in ("Add", "Sub"):
        return _whole(node)
    if node.op_type in ("Concat", "Reshape"):
        return _by_lane(node)
    return None


def _factors(value: ir.Value | None, depth: int = 3) -> list[ir.Value] | None:
    """Returns the tensors a product is made of."""
    if value is None:
        return None
    node = made_by(value, "Mul") if depth else None
    if node is None:
        return [value]
    left, right = (_factors(v, depth - 1) for v in node.inputs)
    return None if left is None or right is None else [*left, *right]


def _whole(node: ir.Node) -> Rotation | None:
    for plain, turned in ((0, 1), (1, 0)):
        if node.op_type == "Sub" and plain == 1:
            continue
        direct, rotated = _factors(node.inputs[plain]), _factors(node.inputs[turned])
        if direct is None or rotated is None or len(direct) < 2 or len(rotated) < 2:
            continue
        for at, factor in enumerate(rotated):
            found = _rotate(factor)
            if found is None:
                continue
            x, pairing, sign = found
            own = next((i for i, f in enumerate(direct) if same(f, x)), None)
            if own is None:
                continue
            sign = -sign if node.op_type == "Sub" else sign
            cos = tuple(f for i, f in enumerate(direct) if i != own)
            sin = tuple(f for i, f in enumerate(rotated) if i != at)
            return Rotation(x, pairing, cos, sin, False, sign, node.outputs[0])
    return None


def _rotate(value: ir.Value) -> tuple[ir.Value, Pairing, int] | None:
    """Reads join(-x1, x0) (sign +1) or join(x1, -x0) (sign -1)."""
    joined = join(value)
    if joined is None:
        return None
    first, first_sign = _signed(joined.first)
    second, second_sign = _signed(joined.second)
    one, two = lane(first), lane(second)
    if one is None or two is None or first_sign == second_sign:
        return None
    if (one.index, two.index) != (1, 0) or not one.pairing == two.pairing == joined.pairing:
        return None
    return (one.base, joined.pairing, second_sign) if same(one.base, two.base) else None


def _signed(value: ir.Value) -> tuple[ir.Value, int]:
    negation = made_by(value, "Neg")
    if negation is not None and negation.inputs[0] is not None:
        return negation.inputs[0], -1
    product = made_by(value, "Mul")
    if product is not None:
        for at in (0, 1):
            other = product.inputs[1 - at]
            if uniform(product.inputs[at]) == -1.0 and other is not None:
                return other, -1
    return value, 1


@dataclass(frozen=True)
class _Part:
    """One product in a lane: sign, the lane of x, and the table's factors."""

    sign: int
    index: int
    base: ir.Value
    pairing: Pairing
    table: tuple[ir.Value, ...]


def _by_lane(node: ir.Node) -> Rotation | None:
    joined = join(node.outputs[0])
    if joined is None:
        return None
    first, second = _parts(joined.first), _parts(joined.second)
    if first is None or second is None:
        return None
    x, pairing = first[0].base, joined.pairing
    if any(p.pairing != pairing or not same(p.base, x) for part in (first, second) for p in part.values()):
        return None
    same_tables = _same_tables(first[0].table, second[1].table) and _same_tables(first[1].table, second[0].table)
    if not same_tables or first[0].sign != 1 or second[1].sign != 1 or first[1].sign != -second[0].sign:
        return None
    return Rotation(x, pairing, first[0].table, first[1].table, True, second[0].sign, node.outputs[0])


def _parts(value: ir.Value) -> dict[int, _Part] | None:
    """Reads `x0 * a ± x1 * b` as {lane index: part}."""
    node = made_by(value, "Add", "Sub")
    if node is None:
        return None
    found: dict[int, _Part] = {}
    for at, term in enumerate(node.inputs):
        inner, sign = _signed(term) if term is not None else (None, 1)
        factors = _factors(inner)
        if factors is None:
            return None
        taken = next(((i, lane_) for i, f in enumerate(factors) if (lane_ := lane(f)) is not None), None)
        if taken is None:
            return None
        index, own = taken
        sign = -sign if at == 1 and node.op_type == "Sub" else sign
        table = tuple(f for i, f in enumerate(factors) if i != index)
        found[own.index] = _Part(sign, own.index, own.base, own.pairing, table)
    return found if set(found) == {0, 1} and all(p.table for p in found.values()) else None


def _same_tables(one: tuple[ir.Value, ...], two: tuple[ir.Value, ...]) -> bool:
    return len(one) == len(two) and all(any(same(a, b) for b in two) for a in one)
