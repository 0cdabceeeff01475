"""Integers of a mask, as polynomials in positions and dimensions: exact, canonical, with bounds that hold everywhere.

A position (`axis`) runs from 0 to its size - 1, a dimension (`size`) is a natural number, everything else is an opaque
number (`read`: an element of a tensor) of which only the axes it depends on are known, or a small function of a
polynomial (`abs`, `quotient`).
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import Any, Literal, Union


@dataclass(frozen=True, order=True)
class Atom:
    """Something a polynomial cannot look into.

    Attributes:
        text: Its name; atoms are equal if their names are.
        kind: "axis" (a position), "size" (a dimension), "read" (an element of a tensor), "abs", "quotient".
        axes: The axes of the mask on which it depends, of b, h, i, j.
        highest: For an axis: its largest value.
        least: For a size: the smallest it can be.
        payload: For "abs" the polynomial; for "quotient" (polynomial, divisor); for "read" (value, indices).
    """

    text: str
    kind: Literal["axis", "size", "read", "abs", "quotient"] = field(compare=False)
    axes: frozenset[str] = field(default=frozenset(), compare=False)
    highest: Union["Poly", None] = field(default=None, compare=False)
    least: int = field(default=0, compare=False)
    payload: Any = field(default=None, compare=False)


Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Poly:
    """A polynomial with integer coefficients; equal polynomials are equal values."""

    terms: tuple[tuple[Monomial, int], ...] = ()

    @staticmethod
    def of(value: Union[int, Atom, "Poly"]) -> "Poly":
        """Returns a number or an atom as a polynomial."""
        if isinstance(value, Poly):
            return value
        if isinstance(value, Atom):
            return Poly((((value,), 1),))
        return Poly((((), value),)) if value else Poly()

    @staticmethod
    def collect(terms: Iterable[tuple[Monomial, int]]) -> "Poly":
        """Returns the sum of terms."""
        total: dict[Monomial, int] = {}
        for monomial, factor in terms:
            total[monomial] = total.get(monomial, 0) + factor
        return Poly(tuple(sorted((m, c) for m, c in total.items() if c)))

    def __add__(self, other: Union["Poly", int]) -> "Poly":
        return Poly.collect((*self.terms, *Poly.of(other).terms))

    def __neg__(self) -> "Poly":
        return Poly(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Union["Poly", int]) -> "Poly":
        return self + -Poly.of(other)

    def __mul__(self, other: Union["Poly", int]) -> "Poly":
        right = Poly.of(other)
        return Poly.collect((tuple(sorted((*m, *n))), c * d) for m, c in self.terms for n, d in right.terms)

    @property
    def number(self) -> int | None:
        """The value where it is a constant, else None."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def atom(self) -> Atom | None:
        """The atom where the polynomial is one atom alone, else None."""
        if len(self.terms) == 1 and len(self.terms[0][0]) == 1 and self.terms[0][1] == 1:
            return self.terms[0][0][0]
        return None

    @property
    def atoms(self) -> frozenset[Atom]:
        """All atoms in it."""
        return frozenset(a for m, _ in self.terms for a in m)

    @property
    def axes(self) -> frozenset[str]:
        """The axes on which its value can depend."""
        return frozenset[str]().union(*(a.axes for a in self.atoms))

    @property
    def content(self) -> int:
        """The greatest common divisor of the coefficients of its atoms."""
        return gcd(*(c for m, c in self.terms if m))

    def replace(self, wanted: Mapping[Atom, "Poly"]) -> "Poly":
        """Returns it with atoms replaced, inside opaque functions too."""
        total = Poly()
        for monomial, factor in self.terms:
            product = Poly.of(factor)
            for atom in monomial:
                product = product * _replaced(atom, wanted)
            total = total + product
        return total

    def __str__(self) -> str:
        parts = [f"{'' if c == 1 and m else c}{'*'.join(a.text for a in m)}" for m, c in self.terms]
        return "+".join(parts) or "0"


NOUGHT = Poly()
"""The polynomial 0."""


def _replaced(atom: Atom, wanted: Mapping[Atom, Poly]) -> Poly:
    if atom in wanted:
        return wanted[atom]
    if atom.kind == "abs":
        return absolute(atom.payload.replace(wanted))
    if atom.kind == "quotient":
        inner, divisor = atom.payload
        moved = inner.replace(wanted)  # still not negative: it was not at any position
        found = quotient(moved, divisor)
        return (
            Poly.of(Atom(f"({moved})//{divisor}", "quotient", moved.axes, payload=(moved, divisor)))
            if found is None
            else found
        )
    if atom.kind == "read" and any(a in wanted for p in atom.payload[1] for a in p.atoms):
        value, indices = atom.payload
        return Poly.of(read(value, tuple(p.replace(wanted) for p in indices)))
    return Poly.of(atom)


def axis(name: str, size: Poly) -> Poly:
    """Returns a position along an axis of the mask; the only one where the axis has length 1."""
    return Poly() if size.number == 1 else Poly.of(Atom(name, "axis", frozenset({name}), highest=size - 1))


def read(value: Any, indices: tuple[Poly, ...]) -> Atom:
    """Returns the element of a tensor at computed indices, of which nothing is known but where it is."""
    axes = frozenset[str]().union(*(p.axes for p in indices))
    places = ",".join(map(str, indices))
    return Atom(f"{value.name}#{id(value)}[{places}]", "read", axes, payload=(value, indices))


def absolute(inner: Poly) -> Poly:
    """Returns |inner|."""
    if inner.number is not None:
        return Poly.of(abs(inner.number))
    if inner.terms and inner.terms[0][1] < 0:
        inner = -inner
    return Poly.of(Atom(f"|{inner}|", "abs", inner.axes, payload=inner))


def quotient(inner: Poly, divisor: int) -> Poly | None:
    """Returns inner // divisor, or None where that is not surely what a truncating division gives."""
    if divisor <= 0 or not at_least_zero(inner):
        return None
    if all(c % divisor == 0 for _, c in inner.terms):
        return Poly(tuple((m, c // divisor) for m, c in inner.terms))
    return Poly.of(Atom(f"({inner})//{divisor}", "quotient", inner.axes, payload=(inner, divisor)))


def at_least_zero(poly: Poly) -> bool:
    """Says whether a polynomial is provably >= 0 at every position and for all sizes."""
    for _ in range(8):
        moving = sorted({a for a in poly.atoms if a.kind != "size"})
        if not moving:
            return _natural(poly)
        atom = moving[0]
        slope = Poly.collect((tuple(a for a in m if a != atom), c) for m, c in poly.terms if atom in m)
        if atom.kind == "read" or any(m.count(atom) > 1 for m, _ in poly.terms):
            return False
        rest = Poly(tuple((m, c) for m, c in poly.terms if atom not in m))
        if at_least_zero(slope):
            poly = rest  # the lowest value of every atom met here is 0
        elif atom.highest is not None and at_least_zero(-slope):
            poly = rest + slope * atom.highest
        else:
            return False
    return False


def _natural(poly: Poly) -> bool:
    """Says whether a polynomial in sizes alone is never negative: none of its terms is, from the least sizes on."""
    raised = poly.replace({a: Poly.of(a) + a.least for a in poly.atoms if a.least})
    return all(c >= 0 for _, c in raised.terms)


def size(text: str, least: int = 0) -> Poly:
    """Returns a dimension, given as a number, a symbol or arithmetic on symbols (`batch*length`, `2*n - 1`)."""
    return _parsed(text, least)


@lru_cache(maxsize=4096)
def _parsed(text: str, least: int) -> Poly:
    try:
        return _arithmetic(ast.parse(text, mode="eval").body, least)
    except (SyntaxError, ValueError):
        return Poly.of(Atom(text, "size", least=least))


def _arithmetic(node: ast.expr, least: int) -> Poly:
    match node:
        case ast.Constant(value=int(number)):
            return Poly.of(number)
        case ast.Name(id=name):
            return Poly.of(Atom(name, "size", least=least))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_arithmetic(operand, least)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _arithmetic(left, least) + _arithmetic(right, least)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _arithmetic(left, least) - _arithmetic(right, least)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _arithmetic(left, least) * _arithmetic(right, least)
    return Poly.of(Atom(ast.unparse(node), "size"))


def capped(have: Poly, room: Poly) -> bool:
    """Says whether a dimension is min(n, room) with n > 1: one that broadcasts to `room` is the room, 1 or not."""
    constant = dict(have.terms).get((), 0)
    atom = (have - constant).atom
    if atom is None or not atom.text.startswith("Min("):
        return False
    try:
        call = ast.parse(atom.text, mode="eval").body
    except SyntaxError:
        return False
    sides = [_arithmetic(side, 0) for side in call.args] if isinstance(call, ast.Call) else []
    limits = [s.number for s in sides if s.number is not None]
    return (
        len(sides) == 2
        and len(limits) == 1
        and limits[0] + constant > 1
        and sum(s + constant == room for s in sides) == 1
    )
