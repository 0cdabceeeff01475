"""Sizes of the graph's outputs in terms of the inputs' dimensions, held against the runs.

The TorchScript exporter calls a size it cannot infer "Concatonnx::MatMul_32_dim_2", and now and then records the size
of the traced run as if it were fixed. What it says is kept where every run agrees; otherwise the simplest expression is
taken that every run agrees with.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from engines import dimension
from export.capture.layout import Size, symbols
from export.capture.symbols import canonical

if TYPE_CHECKING:
    import onnx_ir as ir

Observed = Sequence[tuple[Mapping[str, int], int]]
"""(sizes of the dimensions, size of the axis) of every run."""


def label(model: "ir.Model", runs: Sequence[tuple[Mapping[str, int], Sequence[tuple[int, ...]]]]) -> None:
    """Gives every output a shape that all runs agree with, in place.

    Args:
        model: Its outputs are in the order of the shapes.
        runs: For each run the sizes of the dimensions, and the shape of each output; nothing is changed for fewer
            than two.
    """
    import onnx_ir as ir

    if len(runs) < 2:
        return
    for index, value in enumerate(model.graph.outputs):
        shapes = [(sizes, made[index]) for sizes, made in runs]
        claimed: list[Size | None] = [None] * len(shapes[0][1])
        if value.shape is not None and len(value.shape) == len(claimed):
            claimed = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        value.shape = ir.Shape(
            [
                _agreed(claim, [(sizes, shape[axis]) for sizes, shape in shapes], f"{value.name}_{axis}")
                for axis, claim in enumerate(claimed)
            ]
        )


def _agreed(claim: Size | None, observed: Observed, fallback: str) -> Size:
    for size in itertools.chain([] if claim is None else [claim], _expressions(observed)):
        known = all(name in sizes for name in symbols(size) for sizes, _ in observed)
        if known and all(_value(size, sizes) == seen for sizes, seen in observed):
            return canonical(size)
    return fallback


def _value(size: Size, sizes: Mapping[str, int]) -> int | None:
    try:
        return dimension.value(size, sizes)
    except (KeyError, ZeroDivisionError):  # notation of an exporter that is no arithmetic
        return None


def _expressions(observed: Observed) -> Iterator[Size]:
    """Yields what a size may be, simplest first."""
    sizes, seen = observed[0]
    yield seen
    yield from sizes
    for a, b in itertools.combinations(sizes, 2):
        yield f"{a} + {b}"
        yield f"{a}*{b}"
    for name, size in sizes.items():
        if seen % size == 0:
            yield f"{seen // size}*{name}"
        yield f"{name} + {seen - size}" if seen > size else f"{name} - {size - seen}"
