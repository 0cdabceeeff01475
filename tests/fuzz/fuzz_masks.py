"""Conditions and additive masks as random programs have them: inputs, padding, triangles, windows, and their fills."""

import numpy as np
import onnx_ir as ir
from fuzz_draft import BOOL, FLOAT, HALF, INT64, Draft, Shape, joint

DEEP = {
    ir.DataType.FLOAT16: (-np.inf, -65504.0, -1e4),
    ir.DataType.FLOAT: (-np.inf, -1e9, -3.4028234663852886e38, -1e4, -1e30),
    ir.DataType.DOUBLE: (-np.inf, -1e9, -3.4028234663852886e38, -1e4, -1.7976931348623157e308),
    ir.DataType.BFLOAT16: (-np.inf, -1e9, -3.3895313892515355e38),
}
SHALLOW = (0.0, -5.0, 1.0)


def fill(d: Draft, kind: ir.DataType) -> float:
    """What is written into hidden scores; seldom something that hides nothing."""
    if d.choose.chance(6):
        value = d.choose.one(*SHALLOW)
        d.miss(f"fill {value:g}")
        return value
    return d.choose.one(*DEEP[kind])


def broadcasts(frame: Shape) -> list[Shape]:
    """Shapes that broadcast to the scores without widening them, the usual ones first."""
    *lead, rows, keys = frame
    ones = (1,) * len(lead)
    found: list[Shape] = [(rows, keys), (*ones, rows, keys), (keys,), (1, keys), (rows, 1)]
    if lead and not _computed(lead[0]):
        found += [(lead[0], *ones[1:], rows, keys), (lead[0], *ones[1:], 1, keys), (*lead, rows, keys)]
    if len(lead) > 1 and not any(_computed(n) for n in lead[1:]):
        found += [(1, *lead[1:], rows, keys), (*lead[1:], rows, keys), (*lead[1:], 1, 1)]
    return [shape for shape in found if not any(_computed(n) for n in shape)]


def fits(d: Draft, name: str, frame: Shape) -> bool:
    """Says whether a tensor surely broadcasts to the scores without widening them."""
    shape = d.shapes[name]
    if shape is None or len(shape) > len(frame):
        return False
    return all(n in (1, room) for n, room in zip(shape[::-1], frame[::-1], strict=False))


def _computed(dim: int | str) -> bool:
    return isinstance(dim, str) and not dim.isidentifier()


def tensor(d: Draft, name: str, frame: Shape, kind: ir.DataType) -> str:
    """An input that broadcasts to the scores."""
    options = broadcasts(frame)
    if not options:
        return d.take(name, (1,), kind)
    return d.noise(d.take(name, d.choose.one(*options), kind))


def condition(d: Draft, frame: Shape, scores: str) -> tuple[str, bool]:
    """Returns a boolean tensor that broadcasts to the scores, and its value where the key is seen."""
    known = [c for c in d.conditions if fits(d, c[0], frame)]
    if known and d.choose.chance(25):
        return d.choose.one(*known)
    what = d.choose.one("input", "integers", "padding", "causal", "causal at the end", "window", "strict", "both")
    keep = d.choose.chance(60)
    d.note(f"condition: {what}")
    if what == "input":
        found = tensor(d, "m" if keep else "h", frame, BOOL)
    elif what == "integers":
        whole = tensor(d, "i", frame, INT64)
        found = d.both("Equal", whole, d.number(np.int64(0), INT64), kind=BOOL)
        if keep:
            found = d.like("Not", found)
    elif what == "padding" and len(frame) > 2 and not any(_computed(n) for n in (frame[0], frame[-1])):
        flat = d.take("m" if keep else "h", (frame[0], frame[-1]), BOOL)
        axes = d.integers(*range(1, len(frame) - 1))
        found = d.add("Unsqueeze", flat, axes, shape=(frame[0], *(1,) * (len(frame) - 2), frame[-1]))
    elif what == "both" and not d.conditions:
        (one, keeps), (two, also) = condition(d, frame, scores), condition(d, frame, scores)
        two = two if keeps == also else d.like("Not", two)
        found, keep = d.both("And" if keeps else "Or", one, two), keeps
    else:
        found, keep = _triangle(d, what, scores, keep)
    if d.choose.chance(15):
        found, keep = d.like("Not", found), not keep
    d.conditions.append((found, keep))
    return found, keep


def _triangle(d: Draft, what: str, scores: str, keep: bool) -> tuple[str, bool]:
    """Conditions on positions, from the sizes of the scores: [S, T]."""
    rank = d.rank(scores)
    rows, keys = (d.size(scores, rank - back, scalar=True) for back in (2, 1))
    shape = d.shape(scores)[-2:]
    if what == "causal" and d.choose.chance(30):
        d.note("a triangle cut from ones")
        both = [d.add("Unsqueeze", n, d.integers(0), kind=INT64) for n in (rows, keys)]
        target = d.add("Concat", *both, axis=0, kind=INT64)
        ones = d.add("Expand", d.number(np.ones(1), FLOAT), target, kind=FLOAT, shape=shape)
        return d.like("Cast", d.like("Trilu", ones, upper=0), kind=BOOL, to=int(BOOL)), True
    zero, one = d.number(np.int64(0), INT64), d.number(np.int64(1), INT64)
    i, j = (
        d.add("Range", zero, n, one, kind=INT64, shape=(length,)) for n, length in zip((rows, keys), shape, strict=True)
    )
    i = d.add("Unsqueeze", i, d.integers(1), shape=(shape[0], 1))
    if what == "causal at the end":
        i = d.both("Add", i, d.add("Sub", keys, rows, kind=INT64, shape=()))
    if what == "window":
        back = d.both("Sub", i, j)
        near = d.both("Less", back, d.number(np.int64(3), INT64), kind=BOOL)
        return d.both("And", near, d.both("LessOrEqual", j, i, kind=BOOL)), True
    if what == "strict":
        return d.both("Less", j, i, kind=BOOL), True
    if keep:
        return d.both(*d.choose.one(("LessOrEqual", j, i), ("GreaterOrEqual", i, j)), kind=BOOL), True
    return d.both("Greater", j, i, kind=BOOL), False


def where(d: Draft, found: tuple[str, bool], kept: str, other: str) -> str:
    """`kept` where the condition sees a key, else `other`."""
    condition, keep = found
    shape = joint(d.shapes[condition], joint(d.shapes[kept], d.shapes[other]))
    return d.add("Where", condition, *((kept, other) if keep else (other, kept)), kind=d.kinds[kept], shape=shape)


def as_number(d: Draft, found: tuple[str, bool], kind: ir.DataType, *, hidden: bool) -> str:
    """1 where a key is seen (or hidden) and 0 elsewhere, in an element type."""
    condition, keep = found
    number = d.cast(condition, kind)
    return number if keep != hidden else d.both("Sub", d.number(1.0, kind), number)


def additive(d: Draft, frame: Shape, scores: str, kind: ir.DataType) -> str:
    """A tensor that hides keys when it is added."""
    what = d.choose.one("selected", "times a fill", "input", "cast")
    d.note(f"additive mask: {what}")
    if what == "input":
        return tensor(d, "a", frame, kind)
    if what == "cast":
        own = d.choose.one(FLOAT, HALF) if kind in (FLOAT, HALF) else kind
        return d.cast(tensor(d, "a", frame, own), kind)
    found = condition(d, frame, scores)
    if what == "selected":
        return where(d, found, d.number(0.0, kind), d.number(fill(d, kind), kind))
    deep = d.number(d.choose.one(*(f for f in DEEP[kind] if f > -np.inf)), kind)
    return d.both("Mul", as_number(d, found, kind, hidden=True), deep)
