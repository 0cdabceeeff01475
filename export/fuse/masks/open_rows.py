"""Which query rows see a key: the others keep their meaning, the mean of V, only if their scores are made equal.

A fill overwrites a score, but a mask is added to it, so under a finite fill the score stays visible: score + fill.
Beside a key that is seen that does not matter, its weight is 0. In a row without any, Q is multiplied by 0, which
leaves the fills alone. Whether a row has a key can depend on what is added too (a key seen by the condition and
hidden by a padding mask), and is then read from the mask itself: a key counts as seen if what is added to it is less
than half as deep as the fill. That is exact where fills are so deep that scores vanish beside them; where they are
not, what is added must be so deep, or nothing.
"""

import numpy as np
import onnx_ir as ir

from export.fuse.axes import Block
from export.fuse.masks.swallow import swallows
from export.fuse.scores import Stage
from export.graph.build import Builder
from export.graph.values import Refusal, label
from export.lower.bounds import bound

_BOOL = ir.DataType.BOOL
_VANISH = 16.0
"""Scores up to this must vanish beside a fill for it to be called deep: half its spacing is as large."""


def sees(
    stages: tuple[Stage, ...], conditions: list[ir.Value], total: ir.Value, block: Block, build: Builder
) -> list[ir.Value]:
    """Returns the conditions under which a key is seen, one more than `conditions` where masks are added beside fills.

    Args:
        stages: The stages of the scores, some of them finite fills.
        conditions: The fills' own, True = attend.
        total: The whole mask.
        block: The block, for its name.
        build: Where to insert.

    Raises:
        Refusal: A shallow fill stands beside a mask that may be as deep.
    """
    shallowest = _shallowest_beside(stages)
    if shallowest is None or total.dtype is None:
        return conditions
    if -shallowest * _roundoff(total.dtype) < _VANISH and not _swallowing(stages, total.dtype):
        raise Refusal(
            "K220",
            f"{label(block.softmax)} has scores filled with {shallowest:g} and a mask added that may be as deep: in "
            "rows that both hide, the two mix. Fill with -inf, or ask for masked_rows=zero.",
        )
    return [*conditions, _above(build, total, shallowest / 2)]


def emptied(stages: tuple[Stage, ...], total: ir.Value, build: Builder) -> ir.Value:
    """Returns the mask of fills that are -inf now with -inf too where what is added is as deep as the fills were.

    A row that both hide together has no key, and is to be 0.
    """
    shallowest = _shallowest_beside(stages)
    if shallowest is None or total.dtype is None:
        return total
    hidden = build.number(-np.inf, total.dtype)
    return build("Where", _above(build, total, shallowest), total, hidden, dtype=total.dtype, shape=total.shape)


def _swallowing(stages: tuple[Stage, ...], dtype: ir.DataType) -> bool:
    """Says whether whatever is added beside the fills is 0 or swallows the score, as the deepest fill would."""
    huge = _VANISH / _roundoff(dtype)
    added = ((s.value, abs(_later(stages, at))) for at, s in enumerate(stages) if s.kind in ("add", "subtract"))
    return all(factor > 0.0 and swallows(value, huge / factor) for value, factor in added)


def _shallowest_beside(stages: tuple[Stage, ...]) -> float | None:
    """Returns the shallowest finite fill where something is added that may be as deep, else None."""
    fills = [fill for fill in effective(stages) if fill > -np.inf]
    added = (bound(s.value).finite * _later(stages, at) for at, s in enumerate(stages) if s.kind in ("add", "subtract"))
    return max(fills) if fills and sum(added) > -max(fills) / 2 else None


def narrowed(build: Builder, total: ir.Value, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Returns a mask in a narrower type, finite where it was, and where it was in that type's range to begin with."""
    wide = total.dtype
    if wide is None:
        raise TypeError("the element type of a replayed mask is known")
    lowest, highest = (build.number(float(x), wide) for x in (dtype.min, dtype.max))
    clipped = build("Clip", total, lowest, highest, dtype=wide, shape=total.shape)
    hidden = build("Less", total, build.number(float(wide.min), wide), dtype=_BOOL, shape=total.shape)
    kept = build("Where", hidden, build.number(-np.inf, wide), clipped, dtype=wide, shape=total.shape)
    held = build("GreaterOrEqual", total, lowest, dtype=_BOOL, shape=total.shape)
    return build("Cast", kept, dtype=dtype, shape=total.shape, to=int(dtype)), held


def fits(stages: tuple[Stage, ...], dtype: ir.DataType) -> bool:
    """Says whether a type surely holds every finite number that the stages add or fill."""
    sizes = [bound(s.value).finite * _later(stages, at) for at, s in enumerate(stages) if s.kind in ("add", "subtract")]
    deepest = [abs(f) for f in effective(stages) if np.isfinite(f)]
    return sum(sizes) + max(deepest, default=0.0) <= float(dtype.max)


def effective(stages: tuple[Stage, ...]) -> list[float]:
    """Returns what is left of each fill after the factors that follow it."""
    return [s.fill * _later(stages, at) for at, s in enumerate(stages) if s.kind == "fill"]


def _later(stages: tuple[Stage, ...], at: int) -> float:
    return float(np.prod([s.fill for s in stages[at + 1 :] if s.kind == "scale"]))


def _roundoff(dtype: ir.DataType) -> float:
    return {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}.get(dtype, 2.0**-24)


def _above(build: Builder, total: ir.Value, depth: float) -> ir.Value:
    dtype = total.dtype or ir.DataType.FLOAT
    return build("Greater", total, build.number(depth, dtype), dtype=_BOOL, shape=total.shape)
