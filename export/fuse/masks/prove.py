"""What is proved of a mask: which keys are seen, by rules that hold at every shape, and what is added to the others.

```
polynomial  integers: positions, dimensions, opaque elements; bounds
formula     truth values over them, in one normal form
meaning     an element of a tensor as such a value; the rules are in elementwise, moves, constants
prove       here: the mask of an attention, split into what must all hold, and what each part is
```
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from export.fuse.masks import constants, elementwise, moves
from export.fuse.masks.formula import TRUE, Formula, all_of, any_of, at_least, factors, replaced
from export.fuse.masks.meaning import Cases, Leaf, Meaning, Stuck, Sum
from export.fuse.masks.polynomial import NOUGHT, Poly
from export.graph.values import Dim

RULES = (constants, elementwise, moves)
"""The modules whose import registers the rules."""

_DEEP = -1e8
"""A finite number that hides a key as surely as -inf where another key is seen: scores stay far above it."""


STRUCTURES = ("causal", "window", "block", "padding")
"""Kinds of parts that are more than a condition."""


@dataclass(frozen=True)
class Proof:
    """A mask, proved.

    Attributes:
        keep: Which keys are seen, as far as `bias` leaves them: what it adds may hide more.
        parts: What must all hold for that, each with its kind: "causal", "window", "block", "padding" or "bool".
        causal: That of the parts which is `is_causal`, j <= i + offset, or None. (A part may be called causal and stand
            otherwise: aligned with the last key where the operator counts from the first.)
        fills: The numbers that hide the keys that are not seen; empty for a boolean mask.
        bias: The opaque tensors added to the scores of the keys that are seen; None where that differs among them.
        sees: Every query provably has a key that `keep` leaves it.
    """

    keep: Formula
    parts: tuple[tuple[str, Formula], ...]
    causal: Formula | None
    fills: frozenset[float]
    bias: tuple[Poly, ...] | None
    sees: bool

    @property
    def kind(self) -> str:
        """What the report calls it: the kinds of its parts, "float" for what is added, "none" if nothing is left."""
        found = [k for k in (*STRUCTURES, "bool") if any(kind == k for kind, _ in self.parts)]
        return "+".join([*found, *(["float"] if self.bias is None or self.bias else [])]) or "none"

    @property
    def structured(self) -> bool:
        """Whether more is known of it than that it hides keys or adds numbers."""
        return self.kind == "none" or any(kind in STRUCTURES for kind, _ in self.parts)


@dataclass
class Prover:
    """Proves the masks of one model; masks that layers share are proved once."""

    _meanings: dict[tuple[Dim | None, ...], Meaning] = field(default_factory=dict)
    _proofs: dict[tuple[ir.Value, tuple[Dim | None, ...], Poly], Proof | None] = field(default_factory=dict)

    def meaning(self, frame: tuple[Dim | None, ...]) -> Meaning:
        """Returns the elements of tensors over scores [B, H, S, T] of these dimensions."""
        return self._meanings.setdefault(frame, Meaning(frame))

    def prove(self, mask: ir.Value, frame: tuple[Dim | None, ...], offset: Poly = NOUGHT) -> Proof | None:
        """Returns what is proved of a mask, or None where it cannot be told even how it broadcasts.

        Args:
            mask: Boolean (True = attend) or added to the scores; broadcasts over [B, H, S, T].
            frame: Those dimensions.
            offset: The position of the first query among the keys: the length of the past.
        """
        key = (mask, frame, offset)
        if key not in self._proofs:
            try:
                self._proofs[key] = _proof(self.meaning(frame), mask, offset)
            except Stuck:
                self._proofs[key] = None
        return self._proofs[key]

    def sees(self, conditions: list[ir.Value], frame: tuple[Dim | None, ...]) -> bool:
        """Says whether every query provably sees a key under boolean masks that must all hold."""
        found = [self.prove(c, frame) for c in conditions]
        if not found or any(proof is None for proof in found):
            return False
        return _always_some(self.meaning(frame), all_of(p.keep for p in found if p is not None), Poly())


def hides(number: float, dtype: ir.DataType | None) -> bool:
    """Says whether a number added to a score hides its key wherever another key is seen."""
    if dtype == ir.DataType.FLOAT16:
        return number <= 0.9 * float(np.finfo(np.float16).min)
    return number <= _DEEP


def _proof(meaning: Meaning, mask: ir.Value, offset: Poly) -> Proof:
    found = meaning.mask(mask)
    fills: frozenset[float] = frozenset()
    bias: tuple[Poly, ...] | None = ()
    if isinstance(found, Cases):
        keep, fills, bias = _split(found, mask.dtype)
    else:
        keep = found
    parts = tuple((_kind(meaning, part, offset), part) for part in factors(keep))
    aligned = at_least(meaning.position[2] + offset - meaning.position[3])
    causal = next((part for _, part in parts if part == aligned), None)
    return Proof(keep, parts, causal, fills, bias, _always_some(meaning, keep, offset))


def _split(found: Cases, dtype: ir.DataType | None) -> tuple[Formula, frozenset[float], tuple[Poly, ...] | None]:
    """Tells the cases that hide a key from the others."""
    hidden = [(c, leaf) for c, leaf in found.found if hides(_constant(leaf), dtype)]
    seen = [(c, leaf) for c, leaf in found.found if not hides(_constant(leaf), dtype)]
    keep = seen[0][0] if len(seen) == 1 else ~any_of(c for c, _ in hidden)
    bias = None
    if len(seen) == 1 and _constant(seen[0][1]) == 0.0:
        leaf = seen[0][1]
        bias = leaf.reads if isinstance(leaf, Sum) else ()
    return keep, frozenset(_constant(leaf) for _, leaf in hidden), bias


def _constant(leaf: Leaf) -> float:
    if isinstance(leaf, Sum):
        return leaf.constant
    return 1.0 if leaf.number is None else float(leaf.number)  # not a number that hides, nor one that adds nothing


def _kind(meaning: Meaning, part: Formula, offset: Poly) -> str:
    _, _, query, key = meaning.position
    if part in (at_least(query + offset - key), at_least(query + meaning.sizes[3] - meaning.sizes[2] - key)):
        return "causal"
    if part.axes <= {"b", "j"}:
        return "padding"
    if part.axes != {"i", "j"}:
        return "bool"
    if part.kind == "least" and any(not (part.poly + d).axes for d in (query - key, key - query)):
        return "window"
    if all(a.kind == "quotient" or a.kind == "size" for p in _polys(part) for a in p.atoms):
        return "block"
    return "bool"


def _polys(formula: Formula) -> list[Poly]:
    return [formula.poly, *(p for part in formula.parts for p in _polys(part))]


def _always_some(meaning: Meaning, keep: Formula, offset: Poly) -> bool:
    """Says whether for every query some key is provably seen: its own, the first, or the last."""
    if keep == TRUE:
        return True
    _, _, query, key = meaning.position
    atom = key.atom
    if atom is None or atom.highest is None:
        return False
    for place in (query, query + offset, Poly(), atom.highest):
        there = {atom: place}
        if at_least(atom.highest - place) == TRUE and replaced(keep, there) == TRUE:
            return True
    return False
