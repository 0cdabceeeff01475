"""What random programs do to the scores before the softmax: the stages models have, and near misses of them."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from fuzz_draft import DOUBLE, FLOAT, HALF, Draft
from fuzz_masks import DEEP, additive, as_number, condition, fill, tensor, where

STAGES: list[Callable[[Draft, str], str]] = []
NEAR: list[Callable[[Draft, str], str]] = []


def stage(function: Callable[[Draft, str], str]) -> Callable[[Draft, str], str]:
    STAGES.append(function)
    return function


def near_miss(function: Callable[[Draft, str], str]) -> Callable[[Draft, str], str]:
    NEAR.append(function)
    return function


def staged(d: Draft, scores: str) -> str:
    """Writes up to five stages."""
    for _ in range(d.choose.one(0, 1, 1, 2, 2, 3, 3, 5)):
        if d.choose.chance(6):
            chosen = d.choose.one(*NEAR)
            d.miss(chosen.__name__)
        else:
            chosen = d.choose.one(times, filled, masked, biased, softcapped, *STAGES)
            d.note(chosen.__name__)
        scores = d.noise(chosen(d, scores))
    return scores


def pair(d: Draft, op: str, scores: str, other: str) -> str:
    """A commutative operator, the scores on either side."""
    return d.both(op, *((scores, other) if d.choose.chance(60) else (other, scores)))


def kind(d: Draft, scores: str) -> ir.DataType:
    return d.kinds[scores]


@stage
def times(d: Draft, s: str) -> str:
    return pair(d, "Mul", s, d.number(d.choose.one(0.5, 0.25, 0.35355339, 2.0, [[0.5]], -0.5), kind(d, s)))


@stage
def over(d: Draft, s: str) -> str:
    return d.both("Div", s, d.number(d.choose.one(2.0, 3.0, 2.8284271), kind(d, s)))


@stage
def over_root_of_size(d: Draft, s: str) -> str:
    return d.both("Div", s, d.like("Sqrt", d.number(4.0, kind(d, s))))


@stage
def filled(d: Draft, s: str) -> str:
    return where(d, condition(d, d.shape(s), s), s, d.number(fill(d, kind(d, s)), kind(d, s)))


@stage
def masked(d: Draft, s: str) -> str:
    return pair(d, "Add", s, additive(d, d.shape(s), s, kind(d, s)))


@stage
def biased(d: Draft, s: str) -> str:
    bias = tensor(d, "f", d.shape(s), kind(d, s))
    return d.both("Sub", s, bias) if d.choose.chance(25) else pair(d, "Add", s, bias)


@stage
def slopes(d: Draft, s: str) -> str:
    """A bias by head and distance, as ALiBi's."""
    frame = d.shape(s)
    if len(frame) < 3 or isinstance(frame[-3], str):
        return biased(d, s)
    slope = d.number(2.0 ** -np.arange(1, frame[-3] + 1).reshape(-1, 1, 1), kind(d, s))
    zero, one = (d.number(np.int64(n), ir.DataType.INT64) for n in (0, 1))
    keys = d.size(s, len(frame) - 1, scalar=True)
    positions = d.add("Range", zero, keys, one, kind=ir.DataType.INT64, shape=frame[-1:])
    return pair(d, "Add", s, d.both("Mul", slope, d.cast(positions, kind(d, s))))


@stage
def softcapped(d: Draft, s: str) -> str:
    if {"filled", "masked", "biased", "slopes", "kept_times_score", "less_its_maximum"} & set(d.stages):
        d.near.append("softcap after a mask")
    cap = d.number(d.choose.one(5.0, 30.0), kind(d, s))
    return pair(d, "Mul", d.like("Tanh", d.both("Div", s, cap)), cap)


@stage
def factor_per_head(d: Draft, s: str) -> str:
    frame = d.shape(s)
    if len(frame) < 3 or isinstance(frame[-3], str):
        return times(d, s)
    return pair(d, "Mul", s, d.take("g", (frame[-3], 1, 1), kind(d, s)))


@stage
def less_its_maximum(d: Draft, s: str) -> str:
    return d.both("Sub", s, d.reduce("ReduceMax", s))


@stage
def wider(d: Draft, s: str) -> str:
    """The rest is computed in float32 (or double)."""
    if kind(d, s) == FLOAT and d.choose.chance(80):
        return s
    return s if kind(d, s) == DOUBLE else d.cast(s, DOUBLE if kind(d, s) == FLOAT else FLOAT)


@stage
def turned_twice(d: Draft, s: str) -> str:
    return d.swap(d.swap(s))


@stage
def reshaped_and_back(d: Draft, s: str) -> str:
    frame = d.shape(s)
    if len(frame) != 4:
        return s
    sources = {str(n): (s, at) for at, n in enumerate(frame)}
    both = frame[0] * frame[1] if isinstance(frame[0], int) and isinstance(frame[1], int) else f"{frame[0]}*{frame[1]}"
    flat = d.reshape(s, both, *frame[-2:], sources=sources)
    if d.choose.chance(40):
        d.note("masked")
        flat = masked(d, flat)
    return d.reshape(flat, *frame, sources=sources)


@stage
def kept_times_score(d: Draft, s: str) -> str:
    """score * keep + (1 - keep) * deep, as BERT's elders write it; 0 * -inf would be NaN."""
    if {"filled", "masked"} & set(d.stages):
        return times(d, s)
    found = condition(d, d.shape(s), s)
    deep = d.number(d.choose.one(*(f for f in DEEP[kind(d, s)] if f > -np.inf)), kind(d, s))
    hidden = d.both("Mul", as_number(d, found, kind(d, s), hidden=True), deep)
    return d.both("Add", d.both("Mul", s, as_number(d, found, kind(d, s), hidden=False)), hidden)


@stage
def no_infinities(d: Draft, s: str) -> str:
    """max(s, finfo.min), as OPT writes it after its mask."""
    lowest = {HALF: -65504.0, FLOAT: -3.4028234663852886e38}.get(kind(d, s), -3.3895313892515355e38)
    return d.both("Max", s, d.number(lowest, kind(d, s)))


# Near misses.


@near_miss
def negated(d: Draft, s: str) -> str:
    return d.like("Neg", s) if d.choose.chance(50) else pair(d, "Mul", s, d.number(-0.5, kind(d, s)))


@near_miss
def times_zero(d: Draft, s: str) -> str:
    return pair(d, "Mul", s, d.number(0.0, kind(d, s)))


@near_miss
def clamped(d: Draft, s: str) -> str:
    if d.choose.chance(50):
        return d.like("Relu", s)
    return d.add("Clip", s, d.number(-1.0, kind(d, s)), d.number(1.0, kind(d, s)), shape=d.shape(s))


@near_miss
def scaled_by_itself(d: Draft, s: str) -> str:
    return pair(d, "Mul", s, d.reduce("ReduceMax", d.like("Abs", s)))


@near_miss
def added_to_itself(d: Draft, s: str) -> str:
    return d.both(d.choose.one("Add", "Mul"), s, s)


@near_miss
def masked_by_itself(d: Draft, s: str) -> str:
    zero = d.number(0.0, kind(d, s))
    found = d.both("Greater", s, zero, kind=ir.DataType.BOOL), True
    return where(d, found, s, d.number(fill(d, kind(d, s)), kind(d, s)))


@near_miss
def times_a_mask(d: Draft, s: str) -> str:
    return pair(d, "Mul", s, as_number(d, condition(d, d.shape(s), s), kind(d, s), hidden=False))


@near_miss
def times_a_tensor(d: Draft, s: str) -> str:
    other = tensor(d, "g", d.shape(s), kind(d, s))
    return d.both("Div", s, other) if d.choose.chance(40) else pair(d, "Mul", s, other)


@near_miss
def read_elsewhere(d: Draft, s: str) -> str:
    d.outputs[d.reduce("ReduceMax", s) if d.choose.chance(50) else s] = None
    return s


@near_miss
def heads_mixed(d: Draft, s: str) -> str:
    frame = d.shape(s)
    if len(frame) != 4 or isinstance(frame[1], str):
        return s
    mix = d.number(np.linspace(-1.0, 1.0, frame[1] ** 2).reshape(frame[1], frame[1]), kind(d, s))
    return d.add("Einsum", s, mix, shape=frame, equation="bhst,hg->bgst")


@near_miss
def queries_and_keys_exchanged(d: Draft, s: str) -> str:
    return d.swap(s) if d.shape(s)[-1] == d.shape(s)[-2] else s


@near_miss
def heads_and_rows_exchanged(d: Draft, s: str) -> str:
    frame = d.shape(s)
    return d.turn(s, 0, 2, 1, 3) if len(frame) == 4 and frame[1] == frame[2] else s


@near_miss
def keys_into_heads(d: Draft, s: str) -> str:
    *lead, keys = d.shape(s)
    if isinstance(keys, str) or keys % 2 or len(lead) != 3:
        return s
    sources = {str(n): (s, at) for at, n in enumerate(lead)}
    halves = d.reshape(s, *lead, 2, keys // 2, sources=sources)
    return d.reshape(d.turn(halves, 0, 1, 2, 4, 3), *lead, keys, sources=sources)


@near_miss
def filled_from_a_tensor(d: Draft, s: str) -> str:
    other = tensor(d, "f", d.shape(s), kind(d, s))
    return where(d, condition(d, d.shape(s), s), s, other)
