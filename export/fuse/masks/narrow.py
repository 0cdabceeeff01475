"""Writes what was proved of a mask as the smallest tensor that says it: one axis each for what it depends on."""

from functools import reduce

import numpy as np
import onnx_ir as ir

from export.fuse.masks.formula import Formula
from export.fuse.masks.meaning import Meaning, Stuck
from export.fuse.masks.polynomial import Atom, Poly, capped
from export.graph.build import Builder
from export.graph.values import dim, rank

_BOOL, _INT = ir.DataType.BOOL, ir.DataType.INT64
_AXES = "bhij"


class Narrow:
    """Writes elements of tensors, and formulas over them, with the four axes of the scores, each of length 1 or full.

    Args:
        build: Where to insert.
        meaning: The frame in which they were read.
        query, key: Q [B, H, S, D] and K [B, Hkv, T, D]; their shapes are read where a tensor is longer than the frame.
        past: The keys in front of K, [B, Hkv, P, D], if the attention has a cache: the scores have P + T columns.
    """

    def __init__(
        self, build: Builder, meaning: Meaning, query: ir.Value, key: ir.Value, past: ir.Value | None = None
    ) -> None:
        self._build, self._meaning, self._query, self._key, self._past = build, meaning, query, key, past

    def formula(self, formula: Formula) -> ir.Value:
        """Returns a formula as a boolean tensor.

        Raises:
            Stuck: It is about more than elements of tensors compared with numbers.
        """
        match formula.kind:
            case "flag" if formula.flag is not None:
                return self.element(Poly.of(formula.flag))
            case "all" | "any":
                op = "And" if formula.kind == "all" else "Or"
                return reduce(lambda a, b: self._joined(op, a, b), map(self.formula, formula.parts))
            case "not" if formula.parts[0].kind == "flag":
                inner = self.formula(formula.parts[0])
                return self._build("Not", inner, dtype=_BOOL, shape=inner.shape)
            case "not":
                return self._compared("differs", formula.parts[0].poly)
            case "zero":
                return self._compared("Equal", formula.poly)
            case "least":
                return self._compared("GreaterOrEqual", formula.poly)
        raise Stuck

    def _joined(self, op: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._build(op, a, b, dtype=_BOOL, shape=_joint(a, b))

    def _compared(self, op: str, poly: Poly) -> ir.Value:
        """Returns element + constant compared with 0; "differs" is a Cast where the constant is 0."""
        constant = dict(poly.terms).get((), 0)
        rest = poly - constant
        turned = rest.atom is None
        element = self.element(-rest if turned else rest)
        other = constant if turned else -constant
        build, shape = self._build, element.shape
        if op == "differs" and other == 0:
            return build("Cast", element, dtype=_BOOL, shape=shape, to=int(_BOOL))
        if element.dtype is None:
            raise Stuck
        number = build.constant(np.asarray(other, element.dtype.numpy()))
        if op == "GreaterOrEqual":
            return build("LessOrEqual" if turned else op, element, number, dtype=_BOOL, shape=shape)
        equal = build("Equal", element, number, dtype=_BOOL, shape=shape)
        return equal if op == "Equal" else build("Not", equal, dtype=_BOOL, shape=shape)

    def element(self, poly: Poly) -> ir.Value:
        """Returns a tensor that was read at plain positions, laid out [B|1, H|1, S|1, T|1].

        Raises:
            Stuck: It was read at computed positions, or is no tensor's element.
        """
        atom = poly.atom
        if atom is None or atom.kind != "read":
            raise Stuck
        value, indices = atom.payload
        names = [self._axis(value, at, index) for at, index in enumerate(indices)]
        kept = [name for name in names if name]
        if len(set(kept)) != len(kept) or rank(value) != len(names):
            raise Stuck
        value = self._fitted(value, names)
        if len(names) == 4 and all(name in ("", _AXES[at]) for at, name in enumerate(names)):
            return value
        order = sorted(range(len(names)), key=lambda at: _AXES.find(names[at]) if names[at] else -1)
        if order != list(range(len(names))):
            shape = ir.Shape([value.shape[at] for at in order]) if value.shape is not None else None
            value = self._build("Transpose", value, dtype=value.dtype, shape=shape, perm=order)
        ones = len(names) - len(kept)
        if ones:
            shape = ir.Shape(value.shape[ones:]) if value.shape is not None else None
            value = self._build("Squeeze", value, self._build.axes(*range(ones)), dtype=value.dtype, shape=shape)
        missing = [at for at, name in enumerate(_AXES) if name not in kept]
        if not missing:
            return value
        sizes = iter(value.shape or ())
        shape = ir.Shape([1 if at in missing else next(sizes) for at in range(4)])
        return self._build("Unsqueeze", value, self._build.axes(*missing), dtype=value.dtype, shape=shape)

    def _axis(self, value: ir.Value, at: int, index: Poly) -> str:
        """Returns which axis of the scores an axis of a tensor runs along, "" for none."""
        if index.number == 0 and dim(value, at) == 1:
            return ""
        atom = index.atom
        if atom is None or atom.kind != "axis":
            raise Stuck
        return atom.text

    def _fitted(self, value: ir.Value, names: list[str]) -> ir.Value:
        """Cuts off what lies beyond the scores: the graph read the tensor by position, not by its size."""
        for at, name in enumerate(names):
            if not name:
                continue
            which = _AXES.index(name)
            wanted = self._meaning.sizes[which]
            have = self._meaning.size(value, at)
            if have == wanted or capped(have, wanted):
                continue
            source, axis = (self._key, 2) if name == "j" else (self._query, which)
            if name == "h" or rank(source) != 4:
                raise Stuck
            shape = list(value.shape or ())
            shape[at] = (source.shape or ())[axis]
            build = self._build
            end = build("Shape", source, dtype=_INT, shape=ir.Shape([1]), start=axis, end=axis + 1)
            if name == "j" and self._past is not None:
                held = build("Shape", self._past, dtype=_INT, shape=ir.Shape([1]), start=2, end=3)
                end = build("Add", held, end, dtype=_INT, shape=ir.Shape([1]))
                shape[at] = ir.SymbolicDim(None)
            bounds = (build.axes(0), end, build.axes(at))
            value = build("Slice", value, *bounds, dtype=value.dtype, shape=ir.Shape(shape))
        return value


def plain(formula: Formula) -> bool:
    """Says whether a formula is made of elements of tensors alone, not of positions."""
    own = [a for a in formula.poly.atoms if a.kind != "read"]
    return not own and all(map(plain, formula.parts))


def reads(formula: Formula) -> list[Atom]:
    """Returns the elements a formula is made of."""
    found = [a for a in formula.poly.atoms if a.kind == "read"]
    found += [formula.flag] if formula.flag is not None else []
    return found + [a for part in formula.parts for a in reads(part)]


def _joint(a: ir.Value, b: ir.Value) -> ir.Shape | None:
    if a.shape is None or b.shape is None:
        return None
    return ir.Shape([y if x == 1 else x for x, y in zip(a.shape, b.shape, strict=True)])
