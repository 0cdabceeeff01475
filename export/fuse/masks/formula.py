"""Which keys are seen, as a formula: inequalities between integers, opaque flags, and, or, not, in one normal form.

Negations stand at the leaves, conjunctions and disjunctions are flat, sorted and without repeats, and what is provably
true or false everywhere is so already: equal formulas compare equal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from export.fuse.masks.polynomial import NOUGHT, Atom, Poly, at_least_zero


@dataclass(frozen=True)
class Formula:
    """A truth value at each position (b, h, i, j).

    Attributes:
        kind: "true", "false", "least" (poly >= 0), "zero" (poly == 0), "flag" (a boolean element of a tensor),
            "not" (of a zero or a flag), "all", "any".
        poly: The integer of "least" and "zero".
        flag: The element of "flag".
        parts: The parts of "all" and "any"; the one of "not".
    """

    kind: str
    poly: Poly = NOUGHT
    flag: Atom | None = None
    parts: tuple["Formula", ...] = ()

    @cached_property
    def axes(self) -> frozenset[str]:
        """The axes on which it can depend."""
        own = self.poly.axes | (self.flag.axes if self.flag is not None else frozenset())
        return own.union(*(p.axes for p in self.parts))

    @cached_property
    def text(self) -> str:
        """How it is written; the order of parts follows it."""
        match self.kind:
            case "least":
                return f"{self.poly}>=0"
            case "zero":
                return f"{self.poly}==0"
            case "flag":
                return self.flag.text if self.flag is not None else ""
            case "all" | "any":
                return f"{self.kind}({', '.join(p.text for p in self.parts)})"
            case "not":
                return f"not {self.parts[0].text}"
        return self.kind

    def __invert__(self) -> "Formula":
        return negation(self)

    def __str__(self) -> str:
        return self.text


TRUE, FALSE = Formula("true"), Formula("false")


def truth(value: bool) -> Formula:
    """Returns a constant."""
    return TRUE if value else FALSE


def flag(atom: Atom) -> Formula:
    """Returns a boolean element of a tensor."""
    return Formula("flag", flag=atom)


def at_least(poly: Poly) -> Formula:
    """Returns poly >= 0."""
    if at_least_zero(poly):
        return TRUE
    if at_least_zero(-poly - 1):
        return FALSE
    for monomial, factor in poly.terms:  # |x| <= c and |x| >= c are two inequalities of the inside
        if len(monomial) == 1 and monomial[0].kind == "abs" and abs(factor) == 1:
            rest, inside = poly - Poly(((monomial, factor),)), monomial[0].payload
            sides = at_least(rest + inside * factor), at_least(rest - inside * factor)
            return all_of(sides) if factor < 0 else any_of(sides)
    common = poly.content
    if common > 1:
        poly = Poly.collect((m, c // common) for m, c in poly.terms)  # floors the constant: the rest is an integer
    return Formula("least", poly)


def equal_zero(poly: Poly) -> Formula:
    """Returns poly == 0."""
    if not poly.terms:
        return TRUE
    if at_least_zero(poly - 1) or at_least_zero(-poly - 1):
        return FALSE
    for bounded in (poly, -poly):
        if at_least_zero(bounded):  # what is never below 0 is 0 where it is not above
            return at_least(-bounded)
    if poly.terms[0][1] < 0:
        poly = -poly
    common = poly.content
    constant = dict(poly.terms).get((), 0)
    if common and constant % common:
        return FALSE
    return Formula("zero", Poly(tuple((m, c // common) for m, c in poly.terms)))


def negation(formula: Formula) -> Formula:
    """Returns not formula."""
    match formula.kind:
        case "true" | "false":
            return truth(formula.kind == "false")
        case "least":
            return at_least(-formula.poly - 1)
        case "not":
            return formula.parts[0]
        case "all":
            return any_of(map(negation, formula.parts))
        case "any":
            return all_of(map(negation, formula.parts))
    return Formula("not", parts=(formula,))


def all_of(formulas: Iterable[Formula]) -> Formula:
    """Returns the conjunction."""
    return _joined("all", formulas, TRUE, FALSE)


def any_of(formulas: Iterable[Formula]) -> Formula:
    """Returns the disjunction."""
    return _joined("any", formulas, FALSE, TRUE)


def _joined(kind: str, formulas: Iterable[Formula], nothing: Formula, everything: Formula) -> Formula:
    found: dict[str, Formula] = {}
    for formula in formulas:
        for part in formula.parts if formula.kind == kind else (formula,):
            if part == everything:
                return everything
            if part != nothing:
                found[part.text] = part
    if any(_plain(p) and negation(p).text in found for p in found.values()):
        return everything
    other = "any" if kind == "all" else "all"
    for text, part in list(found.items()):  # a and (a or b) is a
        if (part.kind == other and any(inner.text in found for inner in part.parts)) or (
            part.kind == "least" and any(_stronger(kind, p, part) for p in found.values() if p is not part)
        ):
            del found[text]
    parts = tuple(found[text] for text in sorted(found))
    if len(parts) < 2:
        return parts[0] if parts else nothing
    return Formula(kind, parts=parts)


def _plain(formula: Formula) -> bool:
    return formula.kind in ("least", "zero", "flag", "not")


def _stronger(kind: str, one: Formula, other: Formula) -> bool:
    """Says whether `other` adds nothing beside `one`: implied by it in a conjunction, implying it in a disjunction."""
    if one.kind != "least":
        return False
    difference = other.poly - one.poly if kind == "all" else one.poly - other.poly
    return at_least_zero(difference) and one.poly != other.poly


def factors(formula: Formula) -> tuple[Formula, ...]:
    """Returns what must all hold: none for a formula that always does."""
    if formula == TRUE:
        return ()
    return formula.parts if formula.kind == "all" else (formula,)


def replaced(formula: Formula, wanted: Mapping[Atom, Poly]) -> Formula:
    """Returns a formula with atoms replaced in its polynomials, those that index its flags included."""
    match formula.kind:
        case "least":
            return at_least(formula.poly.replace(wanted))
        case "zero":
            return equal_zero(formula.poly.replace(wanted))
        case "flag":
            moved = None if formula.flag is None else Poly.of(formula.flag).replace(wanted).atom
            return formula if moved is None else flag(moved)
        case "not":
            return negation(replaced(formula.parts[0], wanted))
        case "all":
            return all_of(replaced(p, wanted) for p in formula.parts)
        case "any":
            return any_of(replaced(p, wanted) for p in formula.parts)
    return formula
