"""Turns the stages of a block into the one mask input of Attention, and says what a row without keys means.

The mask is the stages replayed on zero: `softmax(where(c, s, -inf) + t)` has the mask `where(c, 0, -inf) + t`. A
finite fill stays finite, because a row where every key is filled with -1e9 means mean(V), with -inf it means 0 (NaN
when written by hand); only a fill that the element type cannot hold is brought into its range.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from export.fuse.build import Builder
from export.fuse.contract import Agreement, Block
from export.fuse.graph import Refusal, label, made_by, rank, same
from export.fuse.scores import Stage

_DEEP = -1e30
"""Fills below this are written as this: it absorbs every score, and leaves room to add another mask without -inf."""


@dataclass(frozen=True)
class Mask:
    """The mask input: its value (None where there is none), its kind, and what happens to rows without keys."""

    value: ir.Value | None
    kind: str
    masked_rows: str


def write_mask(build: Builder, block: Block, agreed: Agreement, masked_rows: str) -> Mask:
    """Writes the nodes of the mask and returns it.

    Args:
        build: Where to insert.
        block: The block as read.
        agreed: Its unified types.
        masked_rows: "keep" or "zero".

    Raises:
        Refusal: Weights are set to zero after the softmax under a condition that no mask before it has.
    """
    stages = _hide_zeroed(block)
    fills = [s.fill for s in stages if s.kind == "fill"]
    if masked_rows == "zero":
        stages = tuple(replace(s, fill=-np.inf) if s.kind == "fill" else s for s in stages)
    meaning = _meaning(block, fills, masked_rows)
    masking = [s for s in stages if s.kind != "scale"]
    if not masking:
        return Mask(None, "none", meaning)
    if all(s.kind == "fill" and s.fill == -np.inf for s in masking):
        keep = None
        for stage in masking:
            condition = _keep(build, block, stage)
            keep = condition if keep is None else build("And", keep, condition, dtype=ir.DataType.BOOL)
        return Mask(keep, "bool", meaning)
    kind = "float" if not fills else "bool+float" if any(s.kind in ("add", "subtract") for s in stages) else "bool"
    return Mask(_replay(build, block, stages, agreed.dtype), kind, meaning)


def _hide_zeroed(block: Block) -> tuple[Stage, ...]:
    """Makes -inf the fill of a condition that also zeroes weights after the softmax: the two mean "no such key"."""
    stages = list(block.scores.stages)
    for condition, keep_when in block.weights.hidden:
        wanted = _positive(condition, keep_when)
        for at, stage in enumerate(stages):
            if stage.kind == "fill" and stage.value is not None:
                have = _positive(stage.value, stage.keep_when)
                if have[1] == wanted[1] and same(have[0], wanted[0]):
                    stages[at] = replace(stage, fill=-np.inf)
                    break
        else:
            raise Refusal(
                "K305",
                f"Weights of {label(block.softmax)} are set to 0 after the softmax under '{condition.name}', "
                "which does not mask the scores before it.",
            )
    return tuple(stages)


def _positive(condition: ir.Value, keep_when: bool) -> tuple[ir.Value, bool]:
    while (negation := made_by(condition, "Not")) is not None and negation.inputs[0] is not None:
        condition, keep_when = negation.inputs[0], not keep_when
    return condition, keep_when


def _meaning(block: Block, fills: list[float], masked_rows: str) -> str:
    if not fills:
        return "as the float mask says"
    if block.weights.guarded or block.weights.hidden:
        return "zero"
    if all(f == -np.inf for f in fills):
        return "zero (NaN before)"
    return "zero (mean of V before)" if masked_rows == "zero" else "mean of V"


def _keep(build: Builder, block: Block, stage: Stage) -> ir.Value:
    """Returns a stage's condition as True = attend, with four axes."""
    condition = _reshaped(build, stage)
    if not stage.keep_when:
        negation = made_by(condition, "Not")
        inner = negation.inputs[0] if negation is not None else None
        if inner is not None:
            condition = inner
        else:
            condition = build("Not", condition, dtype=ir.DataType.BOOL, shape=condition.shape)
    return _four_axes(build, block, condition)


def _reshaped(build: Builder, stage: Stage) -> ir.Value:
    value = stage.value
    if value is None:
        raise TypeError("a stage without a tensor has nothing to place")
    if stage.shape is not None and stage.reshaped is not None:
        value = build("Reshape", value, stage.shape, dtype=value.dtype, shape=stage.reshaped.shape)
    return value


def _four_axes(build: Builder, block: Block, value: ir.Value) -> ir.Value:
    """Gives a mask the axes [B, H, S, T]: scores of three axes [B, S, T] have one head."""
    length, frame = rank(value), rank(block.softmax.outputs[0])
    if length is None or length == 4:
        return value
    axes = (1,) if length == 3 and frame == 3 else tuple(range(4 - length))
    return build("Unsqueeze", value, build.axes(*axes), dtype=value.dtype)


def _replay(build: Builder, block: Block, stages: tuple[Stage, ...], dtype: ir.DataType) -> ir.Value:
    lowest = max(_DEEP, float(dtype.min)) if dtype.is_floating_point() else _DEEP
    total: ir.Value | None = None
    for stage in stages:
        if stage.kind == "scale":
            if total is not None:
                total = build("Mul", total, build.number(stage.fill, dtype), dtype=dtype)
            continue
        if stage.kind == "fill":
            fill = stage.fill if stage.fill == -np.inf else max(stage.fill, lowest)
            keep = _keep(build, block, stage)
            kept = total if total is not None else build.number(0.0, dtype)
            total = build("Where", keep, kept, build.number(fill, dtype), dtype=dtype)
            continue
        term = _reshaped(build, stage)
        if term.dtype != dtype:
            term = build("Cast", term, dtype=dtype, shape=term.shape, to=int(dtype))
        term = _four_axes(build, block, term)
        if total is None:
            total = term if stage.kind == "add" else build("Neg", term, dtype=dtype)
        else:
            total = build("Add" if stage.kind == "add" else "Sub", total, term, dtype=dtype)
    if total is None:
        raise TypeError("a block without masking stages has no mask to replay")
    return total
