"""Inputs that tell programs apart: odd sizes, all ones, rows without keys, padding on one side, large logits.

An input's name says what it is fed with: m and i are conditions that keep, h ones that hide, a is added and hides (0 or
something deep), f is added, g is a positive factor, cos and sin are tables; all others are data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from fuzz_draft import Input, Program
from fuzz_masks import DEEP


@dataclass(frozen=True)
class Trial:
    """One draw of all inputs."""

    name: str
    sizes: Mapping[str, int]
    pattern: str
    magnitude: float = 1.0


TRIALS = (
    Trial("odd sizes", {"B": 2, "S": 5, "T": 7, "P": 3}, "random"),
    Trial("ones", {"B": 1, "S": 1, "T": 1, "P": 1}, "open"),
    Trial("rows without keys", {"B": 3, "S": 4, "T": 4, "P": 2}, "rows", 0.5),
    Trial("left padding, large logits", {"B": 2, "S": 3, "T": 6, "P": 1}, "left", 5.0),
    Trial("long queries", {"B": 1, "S": 7, "T": 2, "P": 1}, "random"),
)


def feeds(program: Program, trial: Trial, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the inputs of a program in its own element types."""
    rng = np.random.default_rng(seed)
    return {name: _draw(name, value, trial, rng) for name, value in program.inputs.items()}


def _draw(name: str, value: Input, trial: Trial, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(d if isinstance(d, int) else trial.sizes[d] for d in value.shape)
    what = name.partition("_")[0].rstrip("_")
    if value.kind in (ir.DataType.BOOL, ir.DataType.INT64):
        seen = _pattern(shape, trial.pattern, rng)
        seen = ~seen if what == "h" else seen
        return seen if value.kind == ir.DataType.BOOL else seen * rng.integers(1, 3, shape)
    if what == "a":
        deep = rng.choice([f for f in DEEP[value.kind]])
        data = np.where(_pattern(shape, trial.pattern, rng), 0.0, deep)
    elif what == "g":
        data = rng.uniform(0.5, 2.0, shape)
    elif what in ("cos", "sin"):
        data = np.cos(rng.uniform(0.0, 6.0, shape))
    else:
        data = rng.standard_normal(shape) * (1.0 if what == "f" else trial.magnitude)
    with np.errstate(over="ignore"):
        return np.asarray(data).astype(value.kind.numpy())


def _pattern(shape: tuple[int, ...], pattern: str, rng: np.random.Generator) -> np.ndarray:
    """True where a key is seen."""
    seen = np.ones(shape, bool)
    if not shape or pattern == "open":
        return seen
    keys = shape[-1]
    if pattern == "left":
        seen[..., : keys // 3] = False
        return seen
    seen = np.asarray(rng.random(shape) > 0.3)
    seen[..., rng.integers(max(keys, 1))] |= pattern == "random"
    if pattern == "rows":
        if seen.ndim > 1:
            seen[(0,) * (seen.ndim - 1)] = False
        if rng.random() < 0.3:
            seen[...] = False
    return seen
