"""One attention in float64 with the bound on its error: for a kernel or a block whose q, k and v are at hand.

numpy only: the fuser's verification uses it without importing torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import UsageError
from export.parity import budgets
from export.parity.precision import precision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    AnyArray = npt.NDArray[np.generic]


@dataclass(frozen=True)
class AttentionTruth:
    """One attention in float64, with what its error bound needs (`export.parity.budgets` derives it).

    Attributes:
        output: O = PV, [B, H, S, Dv]; zero in a row that sees no key.
        magnitude: A = P|V|, [B, H, S, Dv].
        range: The farthest an average of V can be from O, [B, H, S, Dv].
        peak: max|s| over the keys each query sees, [B, H, S, 1].
        sums: sqrt(D) max(scale |q||k|) + sqrt(T), [B, H, S, 1]: what the sums' lengths cost, in float32 roundoffs.
        dead: Rows that see no key, bool [B, H, S].
    """

    output: "Array"
    magnitude: "Array"
    range: "Array"
    peak: "Array"
    sums: "Array"
    dead: "npt.NDArray[np.bool_]"

    def elementwise(self, dtype: str, *, fused: bool) -> "Array":
        """Returns the largest |e| that a right implementation makes, [B, H, S, Dv].

        Args:
            dtype: "fp32", "fp16", "bf16" or "tf32".
            fused: Whether scores and weights stay in float32 inside one kernel.
        """
        growth = budgets.attention_growth(dtype, fused=fused, peak=self.peak, sums=self.sums)
        return self._error(growth) + precision(dtype).smallest

    def norm(self, dtype: str, *, fused: bool) -> float:
        """Returns the largest Frobenius norm of the error that a right implementation makes; arguments as above."""
        import numpy as np

        cancellation = float(np.linalg.norm(self.output) / max(float(np.linalg.norm(self.magnitude)), 1e-300))
        growth = budgets.attention_growth_norm(
            dtype, fused=fused, peak=self.peak, sums=self.sums, cancellation=cancellation
        )
        return float(np.linalg.norm(self._error(growth)) + precision(dtype).smallest * self.output.size**0.5)

    def ratio(self, actual: "AnyArray", dtype: str, *, fused: bool) -> tuple[float, float]:
        """Returns (elementwise, norm) error over bound of an output: above 1 it is wrong, NaN and Inf count as Inf.

        Raises:
            UsageError: `actual` has another shape than the output.
        """
        import numpy as np

        if actual.shape != self.output.shape:
            raise UsageError(f"The attention's output is {list(self.output.shape)}; got {list(actual.shape)}.")
        error = np.abs(actual.astype(np.float64) - self.output)
        error[np.isnan(error)] = np.inf
        each = float(np.max(error / self.elementwise(dtype, fused=fused), initial=0.0))
        return each, float(np.linalg.norm(error)) / self.norm(dtype, fused=fused)

    def _error(self, growth: "Array") -> "Array":
        import numpy as np

        # Past 700 exp() overflows; any growth above 1 already is V's whole range.
        return np.minimum(self.magnitude * np.expm1(np.minimum(growth, 700.0)), self.range)


def attention_truth(
    q: "AnyArray",
    k: "AnyArray",
    v: "AnyArray",
    *,
    scale: float | None = None,
    mask: "AnyArray | None" = None,
    causal: bool = False,
    softcap: float = 0.0,
) -> AttentionTruth:
    """Returns softmax(mask + softcap(scale q k^T)) v in float64 with its bound, as `ai.onnx::Attention` 23 defines it.

    Args:
        q: [B, H, S, D].
        k: [B, Hkv, T, D]; head h of q reads head h // (H / Hkv).
        v: [B, Hkv, T, Dv].
        scale: Factor on q k^T; 1/sqrt(D) if None.
        mask: Broadcasts to [B, H, S, T]: bool with True = attend, or a number that is added.
        causal: Query i sees keys 0..i (upper-left alignment).
        softcap: c of c tanh(s / c); 0 for none.

    Raises:
        UsageError: The shapes do not make an attention.
    """
    import numpy as np

    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or q.shape[1] % k.shape[1] or k.shape[:3] != v.shape[:3]:
        raise UsageError(
            f"No attention has q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}: they must be [B, H, S, D], "
            "[B, Hkv, T, D] and [B, Hkv, T, Dv] with H a multiple of Hkv."
        )
    groups = q.shape[1] // k.shape[1]
    q64, k64, v64 = (x.astype(np.float64) for x in (q, np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    transposed = k64.swapaxes(-1, -2)
    load = abs(factor) * (np.abs(q64) @ np.abs(transposed))
    scores = factor * (q64 @ transposed)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores, hidden = _masked(scores, mask, causal)
    dead = np.all(hidden, axis=-1)
    top = np.max(scores, axis=-1, keepdims=True, where=~hidden, initial=-np.inf)
    weights = np.where(hidden, 0.0, np.exp(np.where(hidden, 0.0, scores - np.where(dead[..., None], 0.0, top))))
    weights /= np.where(dead, 1.0, weights.sum(axis=-1))[..., None]
    # A key without weight cannot carry its score's error into the output, be the score -1e4 or finfo.min.
    seen = weights > 0
    peak = np.max(np.abs(scores), axis=-1, keepdims=True, where=seen, initial=0.0)
    sums = q.shape[-1] ** 0.5 * np.max(load, axis=-1, keepdims=True, where=seen, initial=0.0) + k.shape[2] ** 0.5
    output = weights @ v64
    farthest = np.max(np.abs(v64), axis=-2, keepdims=True, initial=0.0) + np.abs(output)
    return AttentionTruth(output, weights @ np.abs(v64), farthest, peak, sums, dead)


def _masked(scores: "Array", mask: "AnyArray | None", causal: bool) -> "tuple[Array, npt.NDArray[np.bool_]]":
    """Returns the scores with a numeric mask added, and which keys are hidden, both [B, H, S, T]."""
    import numpy as np

    hidden = np.zeros(scores.shape, dtype=bool)
    if mask is not None and mask.dtype == np.bool_:
        hidden |= ~mask.astype(bool)
    elif mask is not None:
        scores = scores + mask.astype(np.float64)
        hidden |= np.isneginf(scores)
    if causal:
        hidden |= ~np.tri(scores.shape[-2], scores.shape[-1], dtype=bool)
    return scores, hidden
