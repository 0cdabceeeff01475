"""Whole random programs: sizes, operands, the product, its stages, the softmax, V, and what follows."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from fuzz_draft import BRAIN, DOUBLE, FLOAT, HALF, Choose, Draft, Program
from fuzz_operands import Operands, Sizes, operands, repeated
from fuzz_scores import staged
from fuzz_weights import normalised, weighed
from hypothesis import strategies as st


@st.composite
def programs(draw: Callable) -> Program:
    """A random attention program, or a near miss of one."""
    return written(Choose(lambda below: draw(st.integers(0, below - 1))))


def written(choose: Choose) -> Program:
    """Writes a program; `choose` decides everything."""
    kind = DOUBLE if choose.chance(2) else choose.one(FLOAT, FLOAT, FLOAT, FLOAT, HALF, HALF, BRAIN)
    d = Draft(choose, choose.one(17, 18, 23, 20, 14, 24), kind)
    s = _sizes(d)
    y = _block(d, s)
    if choose.chance(8):
        d.note("a second block")
        for name in [*d.outputs]:  # names of the first block's own
            d.outputs[name] = None
        x = y if d.shapes[y] == (s.batch, s.heads, s.rows, s.size) else None
        y = _block(d, replace(s, past=None), x)
    d.outputs[_after(d, s, y)] = None
    return d.program()


def _sizes(d: Draft) -> Sizes:
    batch = d.choose.one("B", "B", 2, 1)
    rows = d.choose.one("S", "S", 4, 1)
    keys = d.choose.one("T", rows, rows, 6)
    past = d.choose.one("P", 3) if d.choose.chance(10) else None
    heads = d.choose.one(2, 4, 1)
    kv_heads = d.choose.one(*(n for n in (heads, heads, heads // 2, 1) if n))
    size = d.choose.one(4, 2, 8)
    return Sizes(batch, rows, keys, past, heads, kv_heads, size, size if d.choose.chance(80) else 6)


def _block(d: Draft, s: Sizes, query: str | None = None) -> str:
    others = ("merged", "merged", "one head", "matrix", "grouped", "einsum", "broadcast batch")
    form = d.choose.one(*("heads",) * 7, *others)
    if query is not None:
        form = "heads"
    d.note(form)
    if form in ("one head", "matrix"):
        return _plain(d, s, form)
    o = operands(d, s)
    if query is not None:
        o = replace(o, q=query)
    if form == "grouped" and not o.k_turned:
        return _grouped(d, s, o)
    shared = s.kv_heads != s.heads
    k, v = o.k, o.v
    if shared and not o.k_turned:
        k, v = repeated(d, s, o, k), repeated(d, s, o, v)
    if d.choose.chance(4) and not o.k_turned and d.rank(k) == 4 and isinstance(d.shape(k)[2], int):
        d.note("keys repeated")
        k, v = (_longer(d, x) for x in (k, v))
    if form == "broadcast batch" and isinstance(s.batch, str) and not o.k_turned:
        return _broadcast(d, s)
    if form == "einsum" and not o.k_turned and d.shape(k)[1] == s.heads == d.shape(v)[1]:
        return _einsum(d, s, o.q, k, v)
    q, k = _scaled(d, o.q), _scaled(d, k)
    if form == "merged" and d.shape(k)[1] == d.shape(v)[1] == s.heads:
        return _merged(d, s, q, k, v, o.k_turned)
    frame = (s.batch, s.heads, s.rows, d.shape(v)[2])
    scores = d.add("MatMul", q, _turned(d, k, o.k_turned), shape=frame)
    return _finished(d, scores, v, (s.batch, s.heads, s.rows, d.shape(v)[3]))


def _longer(d: Draft, x: str) -> str:
    """Repeats what stands at each position, written as heads are repeated."""
    batch, heads, length, size = d.shape(x)
    up = d.add("Unsqueeze", x, d.integers(2), shape=(batch, heads, 1, length, size))
    many = d.add("Expand", up, d.integers(1, 1, 2, 1, 1), shape=(batch, heads, 2, length, size))
    return d.reshape(many, batch, heads, 2 * length, size, sources={str(batch): (x, 0)})


def _scaled(d: Draft, x: str) -> str:
    """A scale on an operand; half of it may be on the other."""
    if not d.choose.chance(20):
        return d.noise(x)
    d.note("scale on an operand")
    op, number = d.choose.one(("Mul", 0.5), ("Div", 1.6817929), ("Mul", 0.70710677), ("Mul", -1.0))
    return d.both(op, x, d.number(number))


def _turned(d: Draft, k: str, already: bool) -> str:
    return k if already else d.noise(d.swap(k))


def _finished(d: Draft, scores: str, v: str, shape: tuple) -> str:
    """Stages, softmax, steps on the weights, and the product with V."""
    w = weighed(d, normalised(d, staged(d, scores)))
    if d.kinds[w] != d.kinds[v]:
        if d.choose.chance(70):
            w = d.cast(w, d.kinds[v])
        else:
            d.note("V is cast")
            v = d.cast(v, d.kinds[w])
    if d.choose.chance(4):
        d.miss("two different V")
        d.outputs[d.add("MatMul", w, d.both("Mul", v, v), shape=shape)] = None
    if d.choose.chance(5) and len(shape) == 4 and d.shape(v)[1] == shape[1] and d.rank(w) == 4:
        d.note("V's product turned")
        y = d.swap(d.add("MatMul", d.swap(v), d.swap(w), shape=(*shape[:-2], shape[-1], shape[-2])))
    else:
        y = d.add("MatMul", w, v, shape=shape)
    return y if d.kinds[y] == d.kind else d.cast(y, d.kind)


def _merged(d: Draft, s: Sizes, q: str, k: str, v: str, k_turned: bool) -> str:
    """Heads merged into the batch; for masks the scores are often split again."""
    both = f"{s.batch}*{s.heads}" if isinstance(s.batch, str) else s.batch * s.heads
    sources = {str(n): (q, at) for at, n in enumerate(d.shape(q))} | {str(d.shape(v)[2]): (v, 2)}
    q3, k3, v3 = (d.reshape(x, both, *d.shape(x)[2:], sources=sources) for x in (q, k, v))
    keys = d.shape(v)[2]
    scores = d.add("MatMul", q3, _turned(d, k3, k_turned), shape=(both, s.rows, keys))
    split = d.choose.one("for the stages", "not", "to the end")
    d.note(f"split: {split}")
    if split == "not":
        y = _finished(d, scores, v3, (both, s.rows, d.shape(v)[3]))
        return d.reshape(y, s.batch, s.heads, s.rows, d.shape(v)[3], sources=sources)
    scores = d.reshape(scores, s.batch, s.heads, s.rows, keys, sources=sources)
    if split == "to the end":
        return _finished(d, scores, v, (s.batch, s.heads, s.rows, d.shape(v)[3]))
    scores = staged(d, scores)
    scores = d.reshape(scores, both, s.rows, keys, sources=sources)
    y = _finished(d, scores, v3, (both, s.rows, d.shape(v)[3]))
    return d.reshape(y, s.batch, s.heads, s.rows, d.shape(v)[3], sources=sources)


def _plain(d: Draft, s: Sizes, form: str) -> str:
    """[B, S, D] with one head, or one matrix."""
    lead = (s.batch,) if form == "one head" else ()
    q = _scaled(d, d.take("q", (*lead, s.rows, s.size)))
    k = _scaled(d, d.take("k", (*lead, s.keys, s.size)))
    v = d.take("v", (*lead, s.keys, s.value_size))
    scores = d.add("MatMul", q, _turned(d, k, False), shape=(*lead, s.rows, s.keys))
    return _finished(d, scores, v, (*lead, s.rows, s.value_size))


def _grouped(d: Draft, s: Sizes, o: Operands) -> str:
    """Queries in groups: [B, Hkv, n, S, D] against [B, Hkv, 1, T, D]."""
    times = s.heads // s.kv_heads
    batch, keys = s.batch, d.shape(o.v)[2]
    sources = {str(n): (o.q, at) for at, n in enumerate(d.shape(o.q))}
    q = d.reshape(o.q, batch, s.kv_heads, times, s.rows, s.size, sources=sources)
    k, v = (d.add("Unsqueeze", x, d.integers(2), shape=(*d.shape(x)[:2], 1, *d.shape(x)[2:])) for x in (o.k, o.v))
    scores = d.add("MatMul", _scaled(d, q), _turned(d, k, False), shape=(batch, s.kv_heads, times, s.rows, keys))
    y = _finished(d, scores, v, (batch, s.kv_heads, times, s.rows, d.shape(v)[-1]))
    return d.reshape(y, batch, s.heads, s.rows, d.shape(v)[-1], sources=sources)


def _broadcast(d: Draft, s: Sizes) -> str:
    """One of Q, K and V has no batch of its own."""
    alone = d.choose.one("q", "k", "v", "kv", "lead of k")
    d.note(f"broadcast: {alone}")
    q = d.take("q", (1 if "q" in alone else s.batch, s.heads, s.rows, s.size))
    lead = (s.heads,) if alone == "lead of k" else (1 if "k" in alone else s.batch, s.heads)
    k = d.take("k", (*lead, s.keys, s.size))
    v = d.take("v", (1 if "v" in alone else s.batch, s.heads, s.keys, s.value_size))
    wide = (1 if d.shape(q)[0] == d.shape(k)[0] == 1 else s.batch, s.heads)
    scores = d.add("MatMul", q, d.swap(k), shape=(*wide, s.rows, s.keys))
    return _finished(d, scores, v, (s.batch, s.heads, s.rows, s.value_size))


def _einsum(d: Draft, s: Sizes, q: str, k: str, v: str) -> str:
    """Einsums over [B, length, H, D], their axes in any order."""
    q, k, v = (d.turn(x, 0, 2, 1, 3) for x in (q, k, v))
    keys = d.shape(v)[1]
    order = d.choose.one("bhst", "bhts")
    if d.choose.chance(50):
        scores = d.add("Einsum", q, k, equation=f"bshd,bthd->{order}", shape=(s.batch, s.heads, s.rows, keys))
    else:
        scores = d.add("Einsum", k, q, equation=f"bthd,bshd->{order}", shape=(s.batch, s.heads, s.rows, keys))
    if order == "bhts":
        d.shapes[scores] = (s.batch, s.heads, keys, s.rows)
        scores = d.swap(scores)
    w = weighed(d, normalised(d, staged(d, scores)))
    w = w if d.kinds[w] == d.kinds[v] else d.cast(w, d.kinds[v])
    target = d.choose.one("bshe", "bhse")
    shapes = {"bshe": (s.batch, s.rows, s.heads, s.value_size), "bhse": (s.batch, s.heads, s.rows, s.value_size)}
    y = d.add("Einsum", w, v, equation=f"bhst,bthe->{target}", shape=shapes[target])
    return d.turn(y, 0, 2, 1, 3) if target == "bshe" else y


def _after(d: Draft, s: Sizes, y: str) -> str:
    """The heads merged again, often; sometimes a projection."""
    y = d.noise(y)
    if d.rank(y) != 4 or d.choose.chance(40):
        return d.like("Identity", y)
    turned = d.turn(y, 0, 2, 1, 3)
    shape = d.shape(turned)
    sources = {str(n): (y, at) for n, at in zip(shape[:2], (0, 2), strict=True)}
    width = shape[2] * shape[3]
    flat = d.reshape(turned, shape[0], shape[1], width, sources=sources)
    if d.choose.chance(30):
        rng = np.random.default_rng(width)
        return d.add("MatMul", flat, d.number(rng.standard_normal((width, width)) * width**-0.5), shape=d.shape(flat))
    return d.like("Identity", flat)
