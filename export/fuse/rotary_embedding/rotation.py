"""Reads rotary position embeddings: which tensors are x, turned by angles, whatever the spelling.

The channels of the result are taken in two halves (or as even and odd ones), and each is read as a sum of products:

    y0 = a * x0 + b * x1        a rotation (scaled, if the tables are) is  a == d  and  b == -c,
    y1 = c * x0 + d * x1        so cos = a and sin = c.

x0 and x1 are channels of one tensor; a, b, c, d are products of tables, compared as expressions. A rotation is an
identity by itself: attention fuses whether or not its RoPE was read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import onnx_ir as ir

from export.fuse.rotary_embedding.channels import Channels, lead, sizes
from export.fuse.rotary_embedding.linear import Base, NotLinearError, Term, candidates, terms
from export.fuse.rotary_embedding.tables import Product, Tables
from export.graph.values import Refusal, attribute, dim, label, made_by, rank

Pairing = Literal["half", "interleaved"]
_PAIRINGS: tuple[Pairing, ...] = ("half", "interleaved")


@dataclass(frozen=True)
class Rotation:
    """A rotation as it was read.

    Attributes:
        result: The rotated tensor; `tail` of its last axes are channels.
        base: What is rotated.
        order: Which channels of the base, in the order that the operator takes them.
        casts: The types the base is cast to before it is rotated, in order.
        pairing: Which channels form a pair.
        cos: The cosine table.
        sin: The sine table.
        whole: `order` is followed, in the result, by all the other channels of the base as they are.
    """

    result: ir.Value
    tail: int
    base: Base
    order: tuple[int, ...]
    casts: tuple[ir.DataType, ...]
    pairing: Pairing
    cos: Product
    sin: Product
    whole: bool = False


def read_rotation(node: ir.Node, tables: Tables) -> Rotation | None:
    """Returns the rotation a node completes, or None where there is none.

    Raises:
        Refusal: It turns pairs of channels, but is no rotation that the operator computes.
    """
    kept: Refusal | None = None
    for tail, width in _shapes(node):
        for pairing in _PAIRINGS:
            try:
                found = _read(node, tail, width, pairing, tables)
            except Refusal as refusal:
                kept = kept or refusal
                continue
            if found is not None:
                return found
    if kept is not None:
        raise kept
    return None


def may_be_pair(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Says whether two tensors may be the two channels of each pair, turned."""
    return all(_ends_in(v, "Add", "Sub") for v in (first, second)) and dim(first, -1) == dim(second, -1)


def _shapes(node: ir.Node) -> Iterator[tuple[int, int]]:
    """Yields (tail, rotary width) that a node's result may have: nothing for the many nodes that end no rotation."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or len(node.inputs) != 2:
        return
    value = node.outputs[0]
    if node.op_type in ("Add", "Sub"):
        if not all(_ends_in(v, "Mul", "Div", "MatMul", "Where") for v in node.inputs):
            return
    elif node.op_type == "Concat":
        length = rank(value) or 1
        if length - attribute(node, "axis", 0) % length > 2 or not all(_ends_in(v, "Add", "Sub") for v in node.inputs):
            return
    else:
        return
    for tail in (2, 1):
        own = sizes(value, tail)
        width = 0 if own is None or (tail == 2 and 2 not in own) else int(prod(own))
        if width and width % 2 == 0:
            yield tail, width


def _ends_in(value: ir.Value | None, *ops: str) -> bool:
    """Says whether a value is made by one of `ops`, through what only moves, negates or casts it."""
    for _ in range(4):
        if made_by(value, *ops) is not None:
            return True
        step = made_by(value, "Unsqueeze", "Reshape", "Cast", "Neg", "Mul", "Squeeze")
        if step is None:
            return False
        value = step.inputs[0]
    return False


def _read(node: ir.Node, tail: int, width: int, pairing: Pairing, tables: Tables) -> Rotation | None:
    value = node.outputs[0]
    half = width // 2
    one, two = (range(half), range(half, width)) if pairing == "half" else (range(0, width, 2), range(1, width, 2))
    first, second = (Channels(value, tail, tuple(p)) for p in (one, two))
    kept: Refusal | None = None
    # a table times a table is symmetric: what is rotated is the one that has all axes of the result
    for base in sorted(candidates(first), key=lambda b: lead(b.value, b.tail) != lead(value, tail)):
        try:
            above, below = terms(first, base), terms(second, base)
        except NotLinearError:
            continue
        pair = _pair(above, below)
        if pair is None:
            continue
        try:
            return _rotation(node, tail, base, pairing, pair, tables)
        except Refusal as refusal:
            kept = kept or refusal
    if kept is not None:
        raise kept
    return None


_Four = tuple[Term, Term, Term, Term]


def _pair(above: tuple[Term, ...] | None, below: tuple[Term, ...] | None) -> _Four | None:
    """Returns the terms of x0 and x1 above, and of x0 and x1 below, x0 the channels that come first."""
    if above is None or below is None or len(above) != 2 or len(below) != 2:
        return None
    above = (above[0], above[1]) if above[0].pick < above[1].pick else (above[1], above[0])
    below = (below[0], below[1]) if below[0].pick < below[1].pick else (below[1], below[0])
    if above[0].pick == above[1].pick or [t.pick for t in above] != [t.pick for t in below]:
        return None
    if set(above[0].pick) & set(above[1].pick):
        return None
    return (*above, *below) if len({t.casts for t in (*above, *below)}) == 1 else None


def _rotation(node: ir.Node, tail: int, base: Base, pairing: Pairing, four: _Four, tables: Tables) -> Rotation | None:
    value = node.outputs[0]
    a, b, c, d = (Product(float(t.sign), ()).times(tables.product(t.factors)) for t in four)
    x0, x1 = four[0].pick, four[1].pick
    if not all(p.parts for p in (a, b, c, d)):
        return None  # sums and differences of channels, without a table: no embedding of positions
    if a != d or b != c.negated:
        raise _no_rotation(node, (a, b, c, d))
    pairs = (*x0, *x1) if pairing == "half" else tuple(i for pair in zip(x0, x1, strict=True) for i in pair)
    return Rotation(value, tail, base, pairs, four[0].casts, pairing, a, c)


def _no_rotation(node: ir.Node, four: tuple[Product, Product, Product, Product]) -> Refusal:
    a, b, c, d = four
    if {a, a.negated} & {d} and {b, b.negated} & {c}:
        return Refusal(
            "R102",
            f"{label(node)} turns pairs of channels, but with signs that make it no rotation: the sine must be "
            "subtracted in one channel of a pair and added in the other.",
        )
    table = "cosine" if not {a, a.negated} & {d} else "sine"
    return Refusal(
        "R101",
        f"{label(node)} turns pairs of channels, but the {table} tables of a pair's two channels are not provably the "
        "same; RotaryEmbedding has one. Compute half a table, and repeat it.",
    )
