"""Attention weights as small maps of one byte a cell, and errors as a histogram: numbers that a page can hold."""

import base64
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

NONE = 255
"""The byte of a cell that is NaN; the others are 0 to 254, from 0 to the map's peak."""
_DECADES = (-12, 4)


def per_head(weights: "Array", heads: int | None) -> "Array":
    """Returns the weights as [batch, heads, queries, keys].

    Args:
        weights: [..., queries, keys]; batch first, heads last of the axes before.
        heads: Query heads; None, or a number that does not divide those axes, takes the third axis from the right.
    """
    queries, keys = weights.shape[-2:]
    flat = weights.reshape(-1, queries, keys)
    count = heads if heads and len(flat) % heads == 0 else weights.shape[-3] if weights.ndim > 2 else 1
    return flat.reshape(-1, count, queries, keys)


def most_hidden(weights: "Array") -> int:
    """Returns which element of a batch hides most: the one worth a picture of the mask."""
    return int((weights == 0).sum(axis=(1, 2, 3)).argmax())


def pooled(maps: "Array", cells: int) -> "Array":
    """Returns maps of at most cells x cells: the largest of what falls into one."""
    import numpy as np

    for axis in (1, 2):
        size = maps.shape[axis]
        if size > cells:
            starts = np.linspace(0, size, cells, endpoint=False).astype(int)
            maps = np.maximum.reduceat(maps, starts, axis=axis)
    return maps


def packed(maps: "Array") -> dict[str, Any]:
    """Returns maps [heads, queries, keys] as base64 of a byte a cell, with the weight that byte 254 stands for."""
    import numpy as np

    finite = maps[np.isfinite(maps)]
    peak = float(np.abs(finite).max()) if finite.size else 0.0
    scaled = np.zeros(maps.shape) if peak == 0.0 else np.abs(np.nan_to_num(maps, posinf=peak)) / peak * (NONE - 1)
    cells = np.where(np.isnan(maps), NONE, np.rint(scaled)).astype(np.uint8)
    return {"peak": peak, "cells": base64.b64encode(cells.tobytes()).decode("ascii")}


def errors(actual: "Array", expected: "Array") -> dict[str, Any]:
    """Returns how |actual - expected| is spread over decades, and where it is largest.

    Args:
        actual: Any shape.
        expected: float64, the same shape.
    """
    import numpy as np

    got, want = actual.astype(np.float64), expected.astype(np.float64)
    both = np.isfinite(got) & np.isfinite(want)
    error = np.abs(got - want)
    same = np.isnan(got) == np.isnan(want)
    misplaced = int((~same | (~both & same & ~np.isnan(got) & (got != want))).sum())
    found = error[both]
    low, high = _DECADES
    counts = [0] * (high - low)
    for value, count in zip(
        *np.unique(np.floor(np.log10(found[found > 0])).astype(int), return_counts=True), strict=True
    ):
        counts[min(max(int(value), low), high - 1) - low] += int(count)
    result: dict[str, Any] = {
        "decades": [low, high],
        "counts": counts,
        "zeros": int((found == 0).sum()),
        "misplaced": misplaced,
        "elements": int(error.size),
        "max": float(found.max()) if found.size else None,
        "worst": None,
        "expected": None,
        "actual": None,
    }
    if found.size and found.max() > 0:
        index = np.unravel_index(int(np.where(both, error, -1).argmax()), error.shape)
        result |= {"worst": [int(i) for i in index], "expected": float(want[index]), "actual": float(got[index])}
    return result


def cells_for(heads: int, room: int, largest: int = 64) -> int:
    """Returns the side of maps that `heads` heads, three maps each, fit into `room` bytes with; 8 at least."""
    return max(8, min(largest, math.isqrt(room // max(1, 3 * heads))))
