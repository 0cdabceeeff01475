"""Turns the stages of a block into the one mask input of Attention, and says what a row without keys means.

The mask is the stages replayed on zero: `softmax(where(c, s, -inf) + t)` has the mask `where(c, 0, -inf) + t`. A
finite fill stays finite, because a row where every key is filled with -1e9 means mean(V), with -inf it means 0 (NaN
when written by hand); only a fill that the element type cannot hold is brought into its range.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from export.fuse.axes import Block
from export.fuse.contract import Agreement
from export.fuse.masks.columns import beside
from export.fuse.masks.frames import place
from export.fuse.masks.groups import four_axes, frame_of
from export.fuse.masks.open_rows import effective, emptied, fits, narrowed, sees
from export.fuse.masks.prove import Prover, hides
from export.fuse.scores import Stage
from export.graph.build import Builder
from export.graph.values import Dim, broadcast, dim, dims, made_by

_DEEP = -1e30
"""A fill that absorbs every score in float32 and bfloat16, and leaves room to add another mask without -inf."""


@dataclass(frozen=True)
class Mask:
    """The mask input.

    Attributes:
        value: The tensor, broadcastable to [B, H, S, T], or None where there is no mask.
        kind: "none", "bool", "float" or "bool+float".
        masked_rows: What a row without any key gives now and, where it differs, gave before.
        open_rows: [B|1, H|1, S|1, 1], 1 where a query row sees a key and 0 where it sees none: Q is to be multiplied by
            it, so that a row without keys has equal scores and keeps its meaning, the mean of V. None where not needed.
    """

    value: ir.Value | None
    kind: str
    masked_rows: str
    open_rows: ir.Value | None = None


def write_mask(
    build: Builder, block: Block, agreed: Agreement, key: ir.Value, masked_rows: str, prover: Prover
) -> Mask:
    """Writes the nodes of the mask and returns it.

    Args:
        build: Where to insert.
        block: The block as read.
        agreed: Its unified types.
        key: K as it enters the op, [B, Hkv, T, D].
        masked_rows: "keep" or "zero".
        prover: Tells where every row sees a key, so that a number that hides the others is as good as -inf.
    """
    stages = tuple(s for s in block.scores.stages if s.kind != "shift")
    fills = [s.fill for s in stages if s.kind == "fill"]
    floored = any(s.kind == "floor" for s in stages)
    if masked_rows == "zero":
        stages = tuple(replace(s, fill=-np.inf) if s.kind == "fill" else s for s in stages if s.kind != "floor")
    meaning = _meaning(block, fills, floored, masked_rows)
    masking = [s for s in stages if s.kind not in ("scale", "floor")]
    if not masking:
        return Mask(None, "none", meaning)
    conditions = [_keep(build, block, agreed, s) for s in masking if s.kind == "fill"]
    every = prover.sees(conditions, frame_of(block, agreed))
    if every and len(conditions) == len(masking) and all(hides(fill, agreed.dtype) for fill in effective(stages)):
        masking = [replace(s, fill=-np.inf) for s in masking]
    if all(s.kind == "fill" and s.fill == -np.inf for s in masking) and (every or not floored):
        return Mask(_over_keys(build, _all(build, conditions), block, key), "bool", meaning)
    kind = "float" if not fills else "bool+float" if len(conditions) < len(masking) else "bool"
    absorbs = _absorbs(stages, agreed.dtype)
    value = _replay(build, block, agreed, stages, conditions, key, _DEEP if absorbs else None)
    if masked_rows == "zero" and not any(s.kind == "sink" for s in stages):
        value = emptied(block.scores.stages, value, build)
    seen: list[ir.Value] = []
    sinks = any(s.kind == "sink" for s in stages)  # beside one that is seen, no row is without keys
    if any(s.kind == "fill" and s.fill > -np.inf for s in stages) and not absorbs and not sinks:
        seen = sees(stages, conditions, value, block, build)
        seen = [] if every and seen == conditions else seen
    if value.dtype != agreed.dtype:
        if fits(stages, agreed.dtype):
            value = build("Cast", value, dtype=agreed.dtype, shape=value.shape, to=int(agreed.dtype))
        else:
            value, held = narrowed(build, value, agreed.dtype)
            seen = [*seen, held]
    open_rows = None
    if seen:
        some = build("Cast", _all(build, seen), dtype=agreed.dtype, to=int(agreed.dtype))
        open_rows = build("ReduceMax", some, build.axes(-1), dtype=agreed.dtype, keepdims=1)
    return Mask(_over_keys(build, value, block, key), kind, meaning, open_rows)


def _replayed_in(block: Block, agreed: Agreement) -> ir.DataType:
    """The type in which masks are added up: the scores' own, where Q's is narrower and might not hold them."""
    scores = block.softmax.inputs[0]
    own = scores.dtype if scores is not None else None
    return own if own is not None and own.itemsize > agreed.dtype.itemsize else agreed.dtype


def _absorbs(stages: tuple[Stage, ...], dtype: ir.DataType) -> bool:
    """Says whether a deeper fill means the same: the type holds it, all are as deep, and nothing is added at any time.

    What is added may hide keys too: a row with some keys filled and the others at -1e9 is a mean over all of them.
    """
    depths = {s.fill for s in stages if s.kind == "fill" and s.fill > -np.inf}
    added = any(s.kind not in ("fill", "scale") for s in stages)
    return dtype != ir.DataType.FLOAT16 and len(depths) == 1 and not added


def _all(build: Builder, conditions: list[ir.Value]) -> ir.Value:
    total = conditions[0]
    for condition in conditions[1:]:
        total = build("And", total, condition, dtype=ir.DataType.BOOL)
    return total


def _over_keys(build: Builder, mask: ir.Value, block: Block, key: ir.Value) -> ir.Value:
    """Writes the keys' axis out where it is not provably as long as K: Attention reads a short mask as hidden keys."""
    sinks = any(stage.kind == "sink" for stage in block.scores.stages)
    if sinks or (dim(mask, -1) is not None and dim(mask, -1) == block.scores.layout.frame[-1]):
        return mask
    keys = build("Shape", key, dtype=ir.DataType.INT64, shape=ir.Shape([1]), start=2, end=3)
    target = build("Concat", build.axes(1, 1, 1), keys, dtype=ir.DataType.INT64, shape=ir.Shape([4]), axis=0)
    return build("Expand", mask, target, dtype=mask.dtype)


def _meaning(block: Block, fills: list[float], floored: bool, masked_rows: str) -> str:
    if not fills:
        return "what the float mask says"
    if block.weights.guarded or any(s.kind == "sink" for s in block.scores.stages):
        return "zero"
    if all(f == -np.inf for f in fills) and not floored:
        return "zero (NaN before)"
    return "zero (mean of V before)" if masked_rows == "zero" else "mean of V"


def _keep(build: Builder, block: Block, agreed: Agreement, stage: Stage) -> ir.Value:
    """Returns a stage's condition as True = attend, with four axes."""
    condition = place(build, stage, block, agreed.home)
    if not stage.keep_when:
        negation = made_by(condition, "Not")
        inner = negation.inputs[0] if negation is not None else None
        if inner is not None:
            condition = inner
        else:
            condition = build("Not", condition, dtype=ir.DataType.BOOL, shape=condition.shape)
    return four_axes(build, condition, block, agreed)


def _replay(
    build: Builder,
    block: Block,
    agreed: Agreement,
    stages: tuple[Stage, ...],
    conditions: list[ir.Value],
    key: ir.Value,
    deep: float | None,
) -> ir.Value:
    """Returns the stages applied to zero; finite fills become `deep` where that is given."""
    dtype = _replayed_in(block, agreed)
    waiting = iter(conditions)
    total: ir.Value | None = None
    shape: tuple[Dim, ...] | None = ()

    def number(value: float) -> ir.Value:
        return build.number(value if value == -np.inf else max(value, float(dtype.min)), dtype)

    for stage in stages:
        if stage.kind in ("scale", "floor"):
            if total is not None:
                if stage.kind == "scale":
                    total = _scaled(build, total, stage.fill, dtype, _shape(shape))
                else:
                    total = build("Max", total, number(stage.fill), dtype=dtype, shape=_shape(shape))
        elif stage.kind == "fill":
            keep = next(waiting)
            shape = _joint(shape, dims(keep))
            kept = total if total is not None else build.number(0.0, dtype)
            fill = number(deep if deep is not None and stage.fill > -np.inf else stage.fill)
            total = build("Where", keep, kept, fill, dtype=dtype, shape=_shape(shape))
        elif stage.kind == "sink":
            total = beside(build, stage, total, key, dtype, lambda value: four_axes(build, value, block, agreed))
            shape = dims(total)
        else:
            term = place(build, stage, block, agreed.home)
            if term.dtype != dtype:
                term = build("Cast", term, dtype=dtype, shape=term.shape, to=int(dtype))
            term = four_axes(build, term, block, agreed)
            shape = _joint(shape, dims(term))
            if total is None:
                total = term if stage.kind == "add" else build("Neg", term, dtype=dtype, shape=_shape(shape))
            else:
                op = "Add" if stage.kind == "add" else "Sub"
                total = build(op, total, term, dtype=dtype, shape=_shape(shape))
    if total is None:
        raise TypeError("a block without masking stages has no mask to replay")
    return total


def _scaled(build: Builder, total: ir.Value, factor: float, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    """Multiplies by a factor, or divides where it was a divisor that the type holds better than its reciprocal."""
    off = [abs(float(np.asarray(x).astype(dtype.numpy())) - x) / abs(x) for x in (factor, 1.0 / (factor or 1.0)) if x]
    op, number = ("Div", 1.0 / factor) if factor and off[1] < off[0] else ("Mul", factor)
    return build(op, total, build.number(number, dtype), dtype=dtype, shape=shape)


def _shape(shape: tuple[Dim, ...] | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape(shape)


def _joint(one: tuple[Dim, ...] | None, two: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Returns the broadcast shape of two, or None where it is not certain."""
    return None if one is None or two is None else broadcast(one, two)
