"""A number of the oracle: its exact value, and how far a right computation in its element type may be from it.

Values are float64. The bound is a running error analysis: each operator passes on the bounds of its inputs and adds its
own rounding, `u * |result|`. Two readings of a graph differ only in the u of plain arithmetic:

    meaning  u = 2^-53: what the graph says. Only what a rewriting may round anew costs more: a factor that is a
             constant, arithmetic on constants, a cast to fewer bits.
    native   u of the element type: what a machine that computes in that type may give.

The range of an element type is part of both: what it cannot hold is infinite.

A row of scores without any finite one has no softmax (NaN). Attention gives 0 there, which is the one difference a
fusion may make, so a graph can be read with such rows as 0 (`empty`), or with all rows whose scores are below a number.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

FLOATS = {
    ir.DataType.DOUBLE: (2.0**-53, 1.7976931348623157e308),
    ir.DataType.FLOAT: (2.0**-24, 3.4028234663852886e38),
    ir.DataType.FLOAT16: (2.0**-11, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-8, 3.3895313892515355e38),
}
"""Unit roundoff and largest number."""

EXACT = 2.0**-53
_COMMON = 1e5
"""A mask deeper than this is one number for all keys it hides: scaling it anew moves them together."""
_DEEP = 1e6
"""From here on rounding to the element type is a part of what is meant: scores are absorbed."""
_LEAST = {
    ir.DataType.DOUBLE: 0.0,
    ir.DataType.FLOAT: 2.0**-126,
    ir.DataType.BFLOAT16: 2.0**-126,
    ir.DataType.FLOAT16: 2.0**-14,
}
"""Smallest normal numbers: below them rounding is no longer relative."""


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        x: The values: float64, int64 or bool.
        kind: The element type in the graph.
        e: The bound on their error, broadcastable to x; 0 for integers and booleans.
        constant: It depends on no input.
    """

    x: np.ndarray
    kind: ir.DataType
    e: np.ndarray | float = 0.0
    constant: bool = False

    def moved(self, change: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
        """Returns the tensor with its elements copied, selected or laid out anew."""
        e = self.e if np.ndim(self.e) == 0 else change(np.broadcast_to(self.e, self.x.shape))
        return replace(self, x=np.asarray(change(self.x)), e=e)


def bounds(e: np.ndarray | float, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(e, like.shape)


@dataclass(frozen=True)
class Rounding:
    """How results are rounded: see the module.

    Attributes:
        native: With the unit roundoff of the element types.
        empty: Rows whose scores are all at or below this have weights of 0.
        faithful: Results are rounded to their element type, so that a deep mask absorbs the scores under it as it does
            there; what it rounds away is then no error.
    """

    native: bool
    empty: float | None = None
    faithful: bool = False

    def unit(self, kind: ir.DataType, constant: bool = False) -> float:
        return FLOATS[kind][0] if self.native or constant else EXACT

    def result(self, x: np.ndarray, kind: ir.DataType, e: np.ndarray | float, constant: bool = False) -> Tensor:
        """Returns what an operator computed, with its own rounding added and its element type's range kept."""
        x = np.asarray(x, np.float64)
        u, most = FLOATS[kind]
        size = np.abs(x)
        if self.faithful:
            own = u * np.minimum(size, _COMMON)
        else:  # what deep masks round away is not the same everywhere; near the end of the range it decides on infinity
            unit = np.where(size > min(_DEEP, most / 2), 4.0 * u, self.unit(kind, constant))
            own = unit * size + self.native * u * _LEAST[kind]
        if kind == ir.DataType.FLOAT16 and not self.faithful:  # a score decides whether the lowest number stays finite
            x = np.where((size > most) & (size < 1.25 * most), np.copysign(most, x), x)
            size = np.abs(x)
        x = np.where(size >= most * (1 + u), np.copysign(np.inf, x), x)
        if self.faithful:
            x = x.astype(kind.numpy()).astype(np.float64)
        e = np.where(np.isfinite(x), np.nan_to_num(e, nan=np.inf) + own, 0.0)
        return Tensor(x, kind, e, constant)

    def scaled(self, size: np.ndarray, kind: ir.DataType) -> np.ndarray:
        """Returns what moving a constant factor elsewhere may cost."""
        return FLOATS[kind][0] * np.minimum(size, _COMMON)


def softmax(x: np.ndarray, e: np.ndarray | float, unit: float, empty: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns softmax over the last axis and its error bound; a row of -inf is NaN, and 0 from `empty` down.

    Where each score is off by at most e_j, weight j is between p_j exp(-e_j) / sum(p exp(e)) and p_j exp(e_j) /
    sum(p exp(-e)).
    """
    if x.shape[-1] == 0:
        return x, np.zeros_like(x)
    with np.errstate(all="ignore"):
        top = x.max(axis=-1, keepdims=True)
        power = np.exp(x - top)
        p = power / power.sum(axis=-1, keepdims=True)
        if empty is not None:
            p = np.where(top <= empty, 0.0, p)
        e = np.where(p > 0, np.minimum(bounds(e, x), 60.0), 0.0)
        least = np.maximum((p * np.exp(-e)).sum(axis=-1, keepdims=True), 1e-300)
        most = (p * np.exp(e)).sum(axis=-1, keepdims=True)
        off = p * np.maximum(np.exp(e) / least - 1.0, 1.0 - np.exp(-e) / most) + (x.shape[-1] + 4.0) * unit * p + 1e-300
    return p, np.minimum(np.nan_to_num(off, nan=0.0, posinf=1.0), 1.0)


def product(a: Tensor, b: Tensor, times: Callable[..., np.ndarray], unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns a bilinear product of two tensors (matmul, einsum) and its error bound."""
    terms = max((*a.x.shape[-1:], 1)) + 2.0
    with np.errstate(all="ignore"):
        x = times(a.x, b.x)
        finite_a, finite_b = (np.nan_to_num(np.abs(t.x), nan=0.0, posinf=0.0) for t in (a, b))
        ea, eb = bounds(a.e, a.x), bounds(b.e, b.x)
        e = times(ea, finite_b + eb) + times(finite_a, eb + terms * unit * finite_b)
    return x, e
