"""What a mask is at position (b, h, i, j), for every shape: the graph evaluated on symbols instead of numbers.

An element is asked for by its indices, which are polynomials in the position; each operator says which elements of its
inputs it needs, and what it makes of them. A boolean element is a formula; a number is a list of cases, each an integer
or a constant plus opaque terms. What an operator without a rule here makes is an opaque element that depends on the
axes its indices do: nothing is guessed, so what is proved holds wherever the graph runs at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from export.fuse.masks.formula import FALSE, TRUE, Formula, all_of, any_of, at_least, flag
from export.fuse.masks.polynomial import Poly, axis, capped, read, size
from export.graph.values import Dim, dim, rank

_DEPTH = 128
_CASES = 12
_LARGEST = 1 << 40
"""Integers beyond this may wrap around when they are added or multiplied; they stay opaque."""

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class Stuck(Exception):
    """An operator says nothing about an element: it is opaque."""


@dataclass(frozen=True)
class Sum:
    """A floating-point number: a constant plus opaque elements of tensors."""

    constant: float
    reads: tuple[Poly, ...] = ()

    @property
    def axes(self) -> frozenset[str]:
        """The axes on which it can depend."""
        return frozenset[str]().union(*(p.axes for p in self.reads))


Leaf = Poly | Sum
Case = tuple[Formula, Leaf]


@dataclass(frozen=True)
class Cases:
    """A number: in each case, whose conditions exclude one another and leave nothing out, what it is."""

    found: tuple[Case, ...]

    @property
    def only(self) -> Leaf | None:
        """The one thing it is, or None where there are several cases."""
        return self.found[0][1] if len(self.found) == 1 else None


Term = Formula | Cases
Indices = tuple[Poly, ...]
Rule = Callable[["Meaning", Any, Indices], Term]
_RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Registers how an element of an operator's output is made; that of "Constant" is given the constant's value."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def one(leaf: Leaf) -> Cases:
    """Returns a number that is the same expression everywhere."""
    return Cases(((TRUE, leaf),))


def combine(cases: list[Case]) -> Cases:
    """Returns the cases that can happen, equal ones as one.

    Raises:
        Stuck: There are too many.
    """
    joined: dict[Leaf, Formula] = {}
    for condition, leaf in cases:
        if condition != FALSE:
            joined[leaf] = any_of((joined[leaf], condition)) if leaf in joined else condition
    if not joined or len(joined) > _CASES:
        raise Stuck
    return Cases(tuple((c, leaf) for leaf, c in joined.items()) if len(joined) > 1 else ((TRUE, next(iter(joined))),))


@dataclass
class Meaning:
    """The elements of the tensors that reach the masks of one frame.

    Attributes:
        frame: The dimensions [B, H, S, T] of the scores; None for an unknown one.
    """

    frame: tuple[Dim | None, ...]
    _known: dict[tuple[ir.Value, Indices], Term] = field(default_factory=dict)
    _depth: int = 0

    def __post_init__(self) -> None:
        self.sizes = tuple(self.dimension(d, f"?{name}") for d, name in zip(self.frame, "bhij", strict=True))
        self.position = tuple(axis(name, s) for name, s in zip("bhij", self.sizes, strict=True))

    def dimension(self, found: Dim | None, otherwise: str) -> Poly:
        """Returns a dimension as a polynomial; dimensions of the frame are at least 1, or there is no element."""
        if isinstance(found, int):
            return Poly.of(found)
        name = otherwise if found is None else found
        return size(name, 1 if found is None or name in self.frame else 0)

    def size(self, value: ir.Value | None, at: int) -> Poly:
        """Returns a dimension of a tensor.

        Raises:
            Stuck: It is not known.
        """
        found = dim(value, at)
        if found is None:
            raise Stuck
        return self.dimension(found, "")

    def mask(self, value: ir.Value) -> Term:
        """Returns what a tensor that broadcasts over the scores is at position (b, h, i, j)."""
        length = rank(value)
        if length is None or length > 4:
            raise Stuck
        frame = self.frame[4 - length :]
        return self.at(value, tuple(self._broadcast(value, at, frame[at], self.position[4 - length + at])
                                    for at in range(length)))  # fmt: skip

    def at(self, value: ir.Value | None, indices: Indices) -> Term:
        """Returns one element of a tensor."""
        if value is None:
            raise Stuck
        key = (value, indices)
        if key not in self._known:
            self._depth += 1
            try:
                self._known[key] = self._evaluate(value, indices)
            except (Stuck, IndexError, RecursionError):
                self._known[key] = opaque(value, indices)
            finally:
                self._depth -= 1
        return self._known[key]

    def _evaluate(self, value: ir.Value, indices: Indices) -> Term:
        node = value.producer()
        if value.const_value is not None or (node is not None and node.op_type == "Constant"):
            return _RULES["Constant"](self, value, indices)
        if node is None or node.domain not in ("", "ai.onnx") or self._depth > _DEPTH or value.index() != 0:
            raise Stuck
        found = _RULES.get(node.op_type)
        if found is None:
            raise Stuck
        return found(self, node, indices)

    def integer(self, value: ir.Value | None, indices: Indices) -> Poly:
        """Returns an element that is one integer expression everywhere.

        Raises:
            Stuck: It is not.
        """
        found = self.at(value, indices)
        leaf = whole(found.only) if isinstance(found, Cases) and found.only is not None else None
        if not isinstance(leaf, Poly):
            raise Stuck
        return leaf

    def operand(self, node: ir.Node, at: int, indices: Indices) -> Term:
        """Returns the element of an input that an operator that broadcasts reads for one of its output."""
        value = node.inputs[at]
        length = rank(value)
        if value is None or length is None or length > len(indices):
            raise Stuck
        others = [v for k, v in enumerate(node.inputs) if k != at and v is not None]
        shift = len(indices) - length
        return self.at(value, tuple(
            indices[k + shift] if _sets_size(others, k - length) else
            self._broadcast(value, k, dim(node.outputs[0], k - length), indices[k + shift])
            for k in range(length)
        ))  # fmt: skip

    def _broadcast(self, value: ir.Value, at: int, room: Dim | None, index: Poly) -> Poly:
        """Returns the index along one axis of what is broadcast over an axis of size `room`."""
        have = dim(value, at)
        if have == 1:
            return Poly()
        if have is None or room is None:
            raise Stuck  # it may be 1
        length, wanted = self.dimension(have, ""), self.dimension(room, "")
        if length == wanted or capped(length, wanted):
            return index
        raise Stuck


def _sets_size(others: list[ir.Value], at: int) -> bool:
    """Says whether no other operand widens an axis, counted from the end: this one's size is the result's."""
    lengths = [rank(v) for v in others]
    return all(n is not None and (n < -at or dim(v, at) == 1) for v, n in zip(others, lengths, strict=True))


def opaque(value: ir.Value, indices: Indices) -> Term:
    """Returns an element of which nothing is known but where it is."""
    atom = read(value, indices)
    if value.dtype == ir.DataType.BOOL:
        return flag(atom)
    if value.dtype in INTEGERS:
        return one(Poly.of(atom))
    return one(Sum(0.0, (Poly.of(atom),)))


def number(value: float, dtype: ir.DataType | None) -> Leaf:
    """Returns a constant of an element type."""
    if dtype is not None and not dtype.is_floating_point():
        if abs(value) > _LARGEST:
            raise Stuck
        return Poly.of(int(value))
    return Sum(float(value))


def whole(leaf: Leaf) -> Leaf:
    """Returns a constant whole number as an integer, anything else as it is."""
    if isinstance(leaf, Sum) and not leaf.reads and abs(leaf.constant) < 2**24 and leaf.constant.is_integer():
        return Poly.of(int(leaf.constant))
    return leaf


def where(condition: Formula, chosen: Term, otherwise: Term) -> Term:
    """Returns a choice between two elements."""
    if isinstance(chosen, Formula) and isinstance(otherwise, Formula):
        return any_of((all_of((condition, chosen)), all_of((~condition, otherwise))))
    if not isinstance(chosen, Cases) or not isinstance(otherwise, Cases):
        raise Stuck
    kept = [(all_of((condition, c)), leaf) for c, leaf in chosen.found]
    return combine(kept + [(all_of((~condition, c)), leaf) for c, leaf in otherwise.found])


def inside(index: Poly, bound: Poly) -> Formula:
    """Returns index < bound."""
    return at_least(bound - index - 1)
