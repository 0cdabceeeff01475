"""Draws inputs that tell two attention spellings apart: odd sizes, hidden rows, padding on both sides, large logits."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir
import sympy

from export.graph.values import dims

_SIZES = ((2, 5, 7, 3, 11, 13), (1, 1, 1, 1, 1, 1), (3, 16, 9, 4, 6, 10))
"""Sizes the symbols take, in the order they are met: batch, then lengths."""

LONGEST = max(map(max, _SIZES))


def alternatives(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yields sizes to try where a graph ties its symbols in ways their names do not say (equal, or n and 2n - 1)."""
    yield sizes
    batch, length = sizes[0], sizes[1]
    for others in ((length,), (2 * length - 1, length), (length, 2 * length - 1), (batch, length), (length, batch)):
        yield (batch, length, *(others * len(sizes))[: len(sizes) - 2])
        yield (length, batch, *(others * len(sizes))[: len(sizes) - 2])


@dataclass(frozen=True)
class Trial:
    """One draw: which sizes, which mask pattern, how large the floating-point values."""

    name: str
    sizes: tuple[int, ...]
    pattern: str
    magnitude: float = 1.0


TRIALS = (
    Trial("odd sizes", _SIZES[0], "random"),
    Trial("ones", _SIZES[1], "open"),
    Trial("no mask", _SIZES[0], "open"),
    Trial("left padding", _SIZES[2], "left"),
    Trial("right padding, large logits", _SIZES[2], "right", 8.0),
    Trial("a row without keys", _SIZES[0], "row"),
)


DEEP = -1e20
"""What hides a key when it is added to a score: it swallows any score and bias in float32.

So a row that it hides from end to end gives one thing, in whatever order the terms are summed; of a shallower one the
roundings decide.
"""

_FUNCTIONS = {"floor", "ceiling", "Max", "Min", "Mod"}


@lru_cache(maxsize=4096)
def parse_size(expression: str) -> sympy.Expr:
    """Reads a dimension: arithmetic on symbols, any of which may have a name that sympy means otherwise (N, S, E)."""
    names = set(re.findall(r"[A-Za-z_]\w*", expression)) - _FUNCTIONS
    try:
        found = sympy.sympify(expression, locals={name: sympy.Symbol(name) for name in names})
    except (sympy.SympifyError, TypeError, AttributeError):
        return sympy.Symbol(expression)
    return found if isinstance(found, sympy.Expr) else sympy.Symbol(expression)


def symbols(value: ir.Value) -> set[str] | None:
    """Returns the symbols in a value's shape, or None where its shape is not known."""
    found = dims(value)
    if found is None:
        return None
    return {str(s) for dim in found if isinstance(dim, str) for s in parse_size(dim).free_symbols}


def bind(values: Mapping[str, ir.Value], sizes: tuple[int, ...]) -> dict[str, int]:
    """Returns a size for every symbol in the values' shapes.

    Raises:
        ValueError: A shape is not known.
    """
    met: dict[str, None] = {}
    for name, value in values.items():
        found = dims(value)
        if found is None:
            raise ValueError(f"the shape of '{name}' is not known")
        for dim in found:
            if isinstance(dim, str):
                for symbol in sorted(str(s) for s in parse_size(dim).free_symbols):
                    met.setdefault(symbol)
    return {symbol: sizes[at % len(sizes)] for at, symbol in enumerate(met)}


def size(value: ir.Value, bound: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the concrete shape of a value under bound symbols."""
    known = {sympy.Symbol(name): number for name, number in bound.items()}
    shape = [
        dim if isinstance(dim, int) else bound[dim] if dim in bound else int(parse_size(dim).subs(known))
        for dim in dims(value) or ()
    ]
    return tuple(max(number, 0) for number in shape)


def draw(
    value: ir.Value, shape: tuple[int, ...], trial: Trial, deep: float | None, rng: np.random.Generator
) -> np.ndarray:
    """Returns data for one input of a region.

    Args:
        value: The tensor.
        shape: Its concrete shape.
        trial: What to draw.
        deep: What hides a key where the tensor reaches only the mask, so that patterns apply to it; else None.
        rng: The generator.
    """
    dtype = value.dtype
    if dtype is None:
        raise ValueError(f"the element type of '{value.name}' is not known")
    if dtype == ir.DataType.BOOL:
        return _pattern(shape, trial.pattern, rng)
    if dtype.is_floating_point():
        data = rng.standard_normal(shape) * trial.magnitude
        if deep is not None and trial.pattern != "open":
            data = np.where(_pattern(shape, trial.pattern, rng), rng.standard_normal(shape), deep)
        return data.astype(np.float64 if dtype == ir.DataType.DOUBLE else np.float32)
    return _pattern(shape, trial.pattern, rng).astype(dtype.numpy())


def _pattern(shape: tuple[int, ...], pattern: str, rng: np.random.Generator) -> np.ndarray:
    """True = attend. The last axis is the keys where there is one."""
    keep = np.ones(shape, dtype=bool)
    if not shape:
        return keep
    keys = shape[-1]
    if pattern == "random" or pattern == "row":
        keep = np.asarray(rng.random(shape) > 0.3)
        if keys:
            keep[..., rng.integers(keys)] = True
    if pattern == "row" and keep.ndim >= 2:
        keep[(0,) * (keep.ndim - 1)] = False
    if pattern == "left":
        keep[..., : keys // 3] = False
    if pattern == "right":
        keep[..., keys - keys // 3 :] = False
    return keep
