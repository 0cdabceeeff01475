"""How random programs write the softmax, what they do to the weights, and their product with V."""

import numpy as np
import onnx_ir as ir
from fuzz_draft import BOOL, FLOAT, INT64, Draft
from fuzz_masks import as_number, condition, fits, where
from fuzz_scores import pair


def sunk(d: Draft, s: str) -> str:
    """A softmax over the keys and a sink beside them, whose weight is dropped."""
    frame, kind = d.shape(s), d.kinds[s]
    d.note("sink")
    heads = (frame[1], 1, 1) if len(frame) == 4 and not isinstance(frame[1], str) else (1,)
    sink = d.take("f", heads, kind) if d.choose.chance(70) else d.number(0.0, kind)
    back = d.choose.chance(70)
    target = d.add("Concat", d.add("Shape", s, kind=INT64, end=len(frame) - 1), d.integers(1), axis=0, kind=INT64)
    column = d.add("Expand", sink, target, kind=kind, shape=(*frame[:-1], 1))
    wide = d.add("Concat", *((s, column) if back else (column, s)), axis=-1, shape=(*frame[:-1], "T+1"))
    weights = d.like("Softmax", wide, axis=-1)
    bounds = (0, -1) if back else (1, (1 << 63) - 1)
    ends = [d.integers(x) for x in (*bounds, len(frame) - 1)]
    return d.add("Slice", weights, *ends, shape=frame)


def normalised(d: Draft, s: str) -> str:
    """The softmax over the keys, in one of its spellings; seldom over something else, or none."""
    if d.opset >= 15 and d.choose.chance(8):
        return sunk(d, s)
    what = d.choose.one(
        *("softmax",) * 8, "of a positive axis", "in float32", "in float32", "by hand", "by hand, safe",
        "exp of log", "turned",
    )  # fmt: skip
    if d.choose.chance(4):
        what = d.choose.one("over the rows", "over the heads", "sigmoid", "half")
        d.miss(what)
    else:
        d.note(what)
    rank = d.rank(s)
    if what == "of a positive axis":
        return d.like("Softmax", s, axis=rank - 1)
    if what == "in float32":
        own = d.kinds[s]
        wide = s if own == FLOAT else d.cast(s, FLOAT)
        return d.cast(d.like("Softmax", wide, axis=-1), own)
    if what.startswith("by hand"):
        top = d.both("Sub", s, d.reduce("ReduceMax", s)) if what.endswith("safe") else s
        power = d.like("Exp", top)
        total = d.reduce("ReduceSum", power)
        if d.choose.chance(20):
            return d.both("Mul", power, d.like("Reciprocal", total))
        return d.both("Div", power, total)
    if what == "exp of log":
        return d.like("Exp", d.like("LogSoftmax", s, axis=-1))
    if what == "turned":
        return d.swap(d.like("Softmax", d.swap(s), axis=rank - 2))
    if what == "over the rows":
        return d.like("Softmax", s, axis=-2)
    if what == "over the heads":
        return d.like("Softmax", s, axis=0 if rank < 3 else rank - 3)
    if what == "sigmoid":
        return d.like("Sigmoid", s)
    weights = d.like("Softmax", s, axis=-1)
    return d.both("Mul", weights, d.number(0.5, d.kinds[s])) if what == "half" else weights


def weighed(d: Draft, w: str) -> str:
    """Up to three steps between the softmax and V."""
    for _ in range(d.choose.one(0, 0, 0, 1, 1, 2, 3)):
        w = d.noise(_step(d, w))
    if d.choose.chance(8):
        d.note("weights wanted")
        d.outputs[w if d.choose.chance(60) else d.reduce("ReduceSum", w, 1)] = None
    return w


def _step(d: Draft, w: str) -> str:
    kind = d.kinds[w]
    zero = d.number(0.0, kind)
    what = d.choose.one("dropout", "not a number", "zeroed", "zeroed by a product", "same", "cast and back")
    if d.choose.chance(6):
        what = d.choose.one("zeroed anew", "normalised anew", "heads mixed", "plus one", "squared")
        d.miss(what)
    else:
        d.note(what)
    if what == "dropout":
        if d.choose.chance(50):
            return d.like("Dropout", w)
        return d.add("Dropout", w, d.number(0.3, FLOAT), d.number(False, BOOL), shape=d.shape(w))
    if what == "not a number":
        test = d.like("IsNaN", w, kind=BOOL)
        return d.add("Where", test, zero, w, shape=d.shape(w), kind=kind)
    known = [c for c in d.conditions if fits(d, c[0], d.shape(w))]
    if what in ("zeroed", "zeroed by a product") and known:
        found = d.choose.one(*known)
        if what == "zeroed":
            return where(d, found, w, zero)
        return pair(d, "Mul", w, as_number(d, found, kind, hidden=False))
    if what == "zeroed anew":
        kept, d.conditions = d.conditions, []
        found = condition(d, d.shape(w), w)
        d.conditions = kept
        return where(d, found, w, zero)
    if what == "normalised anew":
        w = where(d, condition(d, d.shape(w), w), w, zero)
        return d.both("Div", w, d.reduce("ReduceSum", w))
    if what == "heads mixed" and d.rank(w) == 4 and not isinstance(d.shape(w)[1], str):
        heads = d.shape(w)[1]
        mix = d.number(np.linspace(-1.0, 1.0, heads * heads).reshape(heads, heads), kind)
        return d.add("Einsum", w, mix, shape=d.shape(w), equation="bhst,hg->bgst")
    if what == "plus one":
        return pair(d, "Add", w, d.number(1.0, kind))
    if what == "squared":
        return d.both("Mul", w, w)
    if what == "cast and back":
        wide = ir.DataType.DOUBLE if kind == FLOAT else FLOAT
        return d.cast(d.cast(w, wide), kind)
    return d.like("Identity", w)
