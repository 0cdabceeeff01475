"""Elements of constant tensors: a buffer whose every element is found to follow a triangle, a band or a ramp is one."""

import numpy as np
import onnx_ir as ir

from export.fuse.masks.formula import Formula, all_of, at_least, truth
from export.fuse.masks.meaning import Indices, Meaning, Stuck, Term, number, one, rule, where
from export.fuse.masks.polynomial import Poly
from export.graph.values import array

_LARGEST = 1 << 24
"""Elements up to which a constant is looked through: a causal buffer of 4096 positions."""


def scalar(value: np.generic) -> Term:
    """Returns a constant as an element."""
    if value.dtype.kind == "b":
        return truth(bool(value))
    return one(
        number(float(value) if value.dtype.kind not in "iu" else int(value), ir.DataType.from_numpy(value.dtype))
    )


@rule("Constant")
def _constant(_: Meaning, value: ir.Value, indices: Indices) -> Term:
    found = _element(value, indices)
    if found is None:
        raise Stuck
    return found


def _element(value: ir.Value, indices: Indices) -> Term | None:
    """Returns an element of a constant, or None where there is no rule that all of it follows."""
    if value.const_value is not None and value.const_value.size > _LARGEST:
        return None
    data = array(value)
    if data is None or data.size == 0 or data.ndim != len(indices):
        return None
    numbers = tuple(p.number for p in indices)
    if all(n is not None for n in numbers):
        place = tuple(int(n) for n in numbers if n is not None)
        inside = all(-s <= n < s for n, s in zip(place, data.shape, strict=True))
        return scalar(data[place]) if inside else None
    kept = tuple(slice(None) if n is None else n for n in numbers)
    for n, s in zip(numbers, data.shape, strict=True):
        if n is not None and not 0 <= n < s:
            return None
    moving = tuple(p for p, n in zip(indices, numbers, strict=True) if n is None)
    return _pattern(np.asarray(data[kept]), moving)


def _pattern(data: np.ndarray, indices: Indices) -> Term | None:
    """Finds the rule of an array of one or two axes."""
    first = data.reshape(-1)[0]
    if bool((data == first).all()):
        return scalar(first)
    if data.ndim == 1 and data.dtype in (np.int64, np.int32):
        step = int(data[1]) - int(data[0])
        ramp = int(data[0]) + step * np.arange(data.size)
        return one(indices[0] * step + int(data[0])) if np.array_equal(data, ramp) else None
    if data.ndim != 2:
        return None
    for axis in (0, 1):  # one row for all, or one column
        if bool((data == data.take([0], axis)).all()):
            return _pattern(data.take(0, axis), (indices[1 - axis],))
    return _band(data, indices)


def _band(data: np.ndarray, indices: Indices) -> Term | None:
    """Finds `low <= row - column <= high`, in which the array has one value and outside it another."""
    corner = data[-1, 0]
    for inner in (corner, next(iter(x for x in data.reshape(-1) if x != corner))):
        member = data == inner
        outer = data[~member]
        if not bool((outer == outer[0]).all()):
            return None
        rows, columns = np.nonzero(member)
        low, high = int((rows - columns).min()), int((rows - columns).max())
        distance = np.subtract.outer(np.arange(data.shape[0]), np.arange(data.shape[1]))
        if np.array_equal(member, (low <= distance) & (distance <= high)):
            within = _between(indices[0] - indices[1], low, high, data.shape)
            return where(within, scalar(inner), scalar(outer[0]))
    return None


def _between(distance: Poly, low: int, high: int, shape: tuple[int, ...]) -> Formula:
    """Returns low <= distance <= high, leaving out a bound that no element of the array can pass."""
    bounds = []
    if low > 1 - shape[1]:
        bounds.append(at_least(distance - low))
    if high < shape[0] - 1:
        bounds.append(at_least(-distance + high))
    return all_of(bounds)
