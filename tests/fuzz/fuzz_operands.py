"""Where Q, K and V come from: split heads, packed projections, caches, rotations, heads shared in every spelling."""

from dataclasses import dataclass

import numpy as np
from fuzz_draft import INT64, Dim, Draft


@dataclass(frozen=True)
class Sizes:
    """The dimensions of a block: numbers, or the names of symbols."""

    batch: Dim
    rows: Dim
    keys: Dim
    past: Dim | None
    heads: int
    kv_heads: int
    size: int
    value_size: int


@dataclass(frozen=True)
class Operands:
    """Q [B, H, S, D], K [B, Hkv, T, D], V [B, Hkv, T, Dv]; K may be there transposed already."""

    q: str
    k: str
    v: str
    k_turned: bool = False


def operands(d: Draft, s: Sizes) -> Operands:
    """Writes Q, K and V before their heads are repeated."""
    alike = s.rows == s.keys and s.past is None and s.heads == s.kv_heads and s.size == s.value_size
    if alike and d.choose.chance(25):
        q, k, v = _packed(d, s)
    else:
        q = _source(d, "q", s.batch, s.heads, s.rows, s.size)
        k = v = ""
    new = s.keys
    if not k and s.heads == s.kv_heads and s.past is None and d.choose.chance(15):
        d.note("K comes transposed")
        k = d.take("k", (s.batch, s.kv_heads, s.size, new))
        return Operands(q, k, _source(d, "v", s.batch, s.kv_heads, new, s.value_size), True)
    k = k or _source(d, "k", s.batch, s.kv_heads, new, s.size)
    v = v or _source(d, "v", s.batch, s.kv_heads, new, s.value_size)
    if d.choose.chance(20):
        q, k = _rotated(d, q, k)
    if s.past is not None:
        k, v = _cached(d, s, k, "k"), _cached(d, s, v, "v")
    return Operands(q, k, v)


def _source(d: Draft, name: str, batch: Dim, heads: int, length: Dim, size: int) -> str:
    """[B, heads, length, size] of an input in one of the layouts that models have."""
    layout = d.choose.one("plain", "split", "turned", "length first", "linear")
    d.note(f"{name}: {layout}")
    if layout == "plain":
        return d.noise(d.take(name, (batch, heads, length, size)))
    if layout == "turned":
        return d.turn(d.take(name, (batch, length, heads, size)), 0, 2, 1, 3)
    if layout == "length first":
        x = d.take(name, (length, batch, heads * size))
        sources = {str(length): (x, 0), str(batch): (x, 1)}
        return d.turn(d.reshape(x, length, batch, heads, size, sources=sources), 1, 2, 0, 3)
    x = d.take(name, (batch, length, heads * size))
    if layout == "linear":
        rng = np.random.default_rng(len(d.nodes))
        width = heads * size
        weight = d.number(rng.standard_normal((width, width)) * width**-0.5)
        y = d.add("MatMul", x, weight, shape=d.shape(x))
        y = d.both("Add", y, d.number(rng.standard_normal(width) * 0.1)) if d.choose.chance(50) else y
    else:
        y = d.noise(x)
    sources = {str(batch): (x, 0), str(length): (x, 1)}
    return d.turn(d.reshape(y, batch, length, heads, size, sources=sources), 0, 2, 1, 3)


def _packed(d: Draft, s: Sizes) -> tuple[str, str, str]:
    width = s.heads * s.size
    x = d.take("x", (s.batch, s.rows, 3 * width))
    sources = {str(s.batch): (x, 0), str(s.rows): (x, 1)}
    spelling = d.choose.one("thirds of the width", "thirds as an axis", "thirds of each head")
    d.note(f"packed: {spelling}")
    if spelling == "thirds of the width":
        attributes = {"num_outputs": 3} if d.opset >= 18 else {}
        parts = d.add("Split", x, outputs=3, shape=(s.batch, s.rows, width), axis=2, **attributes)
        split = [d.reshape(p, s.batch, s.rows, s.heads, s.size, sources=sources) for p in parts]
        return tuple(d.turn(p, 0, 2, 1, 3) for p in split)
    if spelling == "thirds as an axis":
        five = d.reshape(x, s.batch, s.rows, 3, s.heads, s.size, sources=sources)
        first = d.turn(five, 2, 0, 3, 1, 4)
        shape = (s.batch, s.heads, s.rows, s.size)
        return tuple(d.add("Gather", first, d.number(np.int64(i), INT64), shape=shape, axis=0) for i in range(3))
    five = d.turn(d.reshape(x, s.batch, s.rows, s.heads, 3 * s.size, sources=sources), 0, 2, 1, 3)
    shape = (s.batch, s.heads, s.rows, s.size)
    ends = [(i * s.size, (i + 1) * s.size) for i in range(3)]
    return tuple(d.add("Slice", five, *(d.integers(x) for x in (a, b, 3)), shape=shape) for a, b in ends)


def _cached(d: Draft, s: Sizes, new: str, name: str) -> str:
    """[past, new] along the length; the whole is often an output of the graph."""
    shape = d.shape(new)
    past = d.take(f"past_{name}", (shape[0], shape[1], s.past, shape[3]))
    both = f"{s.past}+{s.keys}" if isinstance(s.past, str) or isinstance(s.keys, str) else s.past + s.keys
    d.note("cache")
    whole = d.add("Concat", past, new, axis=d.choose.one(2, -2), shape=(shape[0], shape[1], both, shape[3]))
    if d.choose.chance(60):
        d.outputs[whole] = None
    return whole


# Rotary embeddings.


def _rotated(d: Draft, q: str, k: str) -> tuple[str, str]:
    which = d.choose.one("qk", "q", "k")
    rotate = _halves if d.choose.chance(60) else _pairs
    wrong = d.choose.chance(15)
    d.note(f"rotated {which}: {rotate.__name__[1:]}{', wrong' if wrong else ''}")
    tables: dict[tuple, tuple[str, str]] = {}
    done = []
    for name, x in (("q", q), ("k", k)):
        if name not in which:
            done.append(x)
            continue
        length, width = d.shape(x)[2], d.shape(x)[3] // 2
        if length not in tables:
            lead = d.choose.one((), (1, 1), (d.shape(x)[0], 1))
            tables[length] = tuple(d.take(f"{t}_{name}", (*lead, length, width)) for t in ("cos", "sin"))
        done.append(rotate(d, x, *tables[length], wrong))
    return done[0], done[1]


def _part(d: Draft, x: str, start: int, end: int, step: int = 1) -> str:
    count = len(range(start, end, step))
    shape = (*d.shape(x)[:-1], count)
    return d.add("Slice", x, *(d.integers(i) for i in (start, end, -1, step)), shape=shape)


def _halves(d: Draft, x: str, cos: str, sin: str, wrong: bool) -> str:
    size = d.shape(x)[-1]
    one, two = _part(d, x, 0, size // 2), _part(d, x, size // 2, size)
    if d.choose.chance(60):  # x * cos + rotate_half(x) * sin with tables as wide as x
        wide = [d.add("Concat", t, t, axis=-1, shape=(*d.shape(t)[:-1], size)) for t in (cos, sin)]
        parts = (one, d.like("Neg", two)) if wrong else (d.like("Neg", two), one)
        turned = d.add("Concat", *parts, axis=-1, shape=d.shape(x))
        terms = [d.both("Mul", x, wide[0]), d.both("Mul", turned, wide[1])]
        return d.both("Add", *(terms if d.choose.chance(70) else reversed(terms)))
    real = d.both("Add" if wrong else "Sub", d.both("Mul", one, cos), d.both("Mul", two, sin))
    other = d.both("Add", d.both("Mul", two, cos), d.both("Mul", one, sin))
    return d.add("Concat", real, other, axis=-1, shape=d.shape(x))


def _pairs(d: Draft, x: str, cos: str, sin: str, wrong: bool) -> str:
    size = d.shape(x)[-1]
    one, two = _part(d, x, 0, size, 2), _part(d, x, 1, size, 2)
    if wrong:
        one, two = two, one
    real = d.both("Sub", d.both("Mul", one, cos), d.both("Mul", two, sin))
    other = d.both("Add", d.both("Mul", two, cos), d.both("Mul", one, sin))
    columns = [d.add("Unsqueeze", t, d.integers(-1), shape=(*d.shape(t), 1)) for t in (real, other)]
    shape = d.shape(x)
    stacked = d.add("Concat", *columns, axis=-1, shape=(*shape[:-1], size // 2, 2))
    return d.reshape(stacked, *shape, sources={str(n): (x, at) for at, n in enumerate(shape)})


# Fewer heads of K and V than of Q.


def repeated(d: Draft, s: Sizes, o: Operands, x: str) -> str:
    """Repeats [B, Hkv, T, D] to as many heads as Q has, in one spelling for K and often another for V."""
    times = s.heads // s.kv_heads
    shape = d.shape(x)
    wide = (shape[0], s.heads, *shape[2:])
    spellings = ["expand", "tile of five axes", "interleaved by index", "stacked"]
    if s.kv_heads == 1:
        spellings = ["broadcast", "expand of one head", *spellings]
    spelling = d.choose.one(*spellings, *(["whole blocks"] if d.choose.chance(30) else []))
    if spelling == "whole blocks" and s.kv_heads > 1:  # head h reads h % Hkv
        d.miss("heads repeated as whole blocks")
    else:
        d.note(f"heads: {spelling}")
    if spelling == "broadcast":
        return x
    if spelling == "expand of one head":
        return d.add("Expand", x, d.integers(1, s.heads, 1, 1), shape=wide)
    if spelling == "interleaved by index":
        index = d.number(np.repeat(np.arange(s.kv_heads), times), INT64)
        return d.add("Gather", x, index, axis=1, shape=wide)
    if spelling == "whole blocks":
        return d.add("Tile", x, d.integers(1, times, 1, 1), shape=wide)
    five = (shape[0], s.kv_heads, times, *shape[2:])
    up = d.add("Unsqueeze", x, d.integers(2), shape=(*shape[:2], 1, *shape[2:]))
    if spelling == "stacked":
        many = d.add("Concat", *[up] * times, axis=2, shape=five)
    elif spelling == "expand":
        many = d.add("Expand", up, d.integers(1, 1, times, 1, 1), shape=five)
    else:
        many = d.add("Tile", up, d.integers(1, 1, times, 1, 1), shape=five)
    return d.reshape(many, *wide, sources={str(n): (x, at) for at, n in enumerate(shape)})
