"""How far an answer may be from the float64 one: bounds derived from rounding, never a chosen tolerance.

**One attention** (`export.parity.attention.AttentionTruth`). Let s be the scores before the softmax, P the weights,
O = PV and A = P|V|, all in float64; u the unit roundoff of the dtype under test and u32 = 2**-24 that of the
accumulators; D the head size and T the number of keys. A right implementation errs in four places:

1. *Stored scores.* A score kept at the dtype under test is s(1 + d) with |d| <= u. The softmax turns an absolute
   error of a score into a relative one of its weight, exp(s + s d) = exp(s) exp(s d), so that a weight is off by at
   most a factor exp(u max|s|), the maximum being over the keys that the query sees.
2. *Stored weights* add a factor 1 + u, 3. *the stored output* another: the 2 in (2 + max|s|).
4. *Sums.* Adding D products in float32 leaves an error of about sqrt(D) u32 * scale |q||k| in a score (rounding errors
   have independent signs; their bound would carry D), adding T terms sqrt(T) u32 A in the output. In half precision
   this vanishes; in float32 it is what there is.

Every one passes through |V|, which gives for each element

    x = c u (2 + max|s|) + u32 (sqrt(D) max(scale |q||k|) + sqrt(T)),     |e| <= A (exp(x) - 1) + smallest,

and never more than V's own range, which no average of V leaves. c counts how often scores and weights are rounded: 1
where a kernel keeps them in float32 (a fused one; also float32 itself), 3 where each step stores them (a decomposed
one; ONNX Runtime's CPU Attention is one in this sense, since it scales Q and K apart before multiplying).

Over a whole tensor the errors' signs average out: a score is off by u |s| / sqrt(3) rather than u max|s|, and rounding
the output costs u ||O||, not u ||A||. With norms over all elements that leaves

    x = c u (||O|| / ||A|| + max|s| / 3) + u32 (sqrt(D) max(scale |q||k|) + sqrt(T)) / 4,
    ||e|| <= ||A (exp(x) - 1)||.

The largest ratios of error to bound that 250 random attentions reached (B 1-2, H 1-3, S 1-128, T 1-3000, D 8-256,
scores up to 1000, PyTorch 2.13 on a CPU): elementwise .67 fp32, .58 fp16, .53 bf16; norm .62, .62, .58.

**A whole graph** (`graph_budget`). Layers before and after the attention have no such closed form, so the yardstick is
PyTorch itself at that dtype, whose own error `export.parity.reach` measures:

    |e| <= 2 reach + 4 ulp,   ||e|| <= 2 ||reach|| + u ||y||.

Twice, because two implementations that err equally differ from each other by up to the sum of both; 4 ulp, because
where PyTorch happens to be exact an equally good order of summation need not be.

A flat `atol` has no such reason: 1e-2 rejects a right bfloat16 kernel and passes a broken float32 one.
"""

from typing import TYPE_CHECKING

from export.parity.precision import Precision, precision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

REACH_FACTOR = 2.0
REACH_ULPS = 4.0
ACCUMULATOR_U = 2.0**-24

ROUNDINGS = {"wide": 1.0, "stored": 3.0}
"""c: how often scores and weights are rounded to the dtype under test, by where a kernel keeps them."""


def roundings(dtype: str, *, fused: bool) -> float:
    """Returns c of the module docstring; float32 has no wider type to keep scores in, nor a need for one."""
    return ROUNDINGS["wide" if fused or precision(dtype).name == "fp32" else "stored"]


def attention_growth(dtype: str, *, fused: bool, peak: "Array", sums: "Array") -> "Array":
    """Returns x of the elementwise bound A (exp(x) - 1).

    Args:
        dtype: "fp32", "fp16", "bf16" or "tf32".
        fused: Whether scores and weights stay in float32 inside one kernel.
        peak: max|s| over the keys each query sees, [B, H, S, 1].
        sums: sqrt(D) max(scale |q||k|) + sqrt(T), [B, H, S, 1].
    """
    return roundings(dtype, fused=fused) * precision(dtype).u * (2 + peak) + ACCUMULATOR_U * sums


def attention_growth_norm(dtype: str, *, fused: bool, peak: "Array", sums: "Array", cancellation: float) -> "Array":
    """Returns x of the norm's bound ||A (exp(x) - 1)||; `cancellation` is ||O|| / ||A||, the rest as elementwise."""
    stored = roundings(dtype, fused=fused) * precision(dtype).u
    return stored * (cancellation + peak / 3) + ACCUMULATOR_U * sums / 4


def graph_budget(expected: "Array", reach: "Array", dtype: Precision) -> "Array":
    """Returns the largest |e| at each element of a whole graph's output: 2 reach + 4 ulp.

    Args:
        expected: The float64 output, any shape.
        reach: PyTorch's own error at that dtype, broadcastable to it.
        dtype: The precision under test.
    """
    return REACH_FACTOR * reach + REACH_ULPS * dtype.ulp(expected)


def graph_budget_norm(expected: "Array", reach_norm: float, dtype: Precision) -> float:
    """Returns the largest ||e|| over a whole output: 2 ||reach|| + u ||y|| (and the spacing near zero).

    Args:
        expected: The float64 output, finite.
        reach_norm: The norm of PyTorch's own error at that dtype.
        dtype: The precision under test.
    """
    import numpy as np

    floor = dtype.smallest * expected.size**0.5
    return float(REACH_FACTOR * reach_norm + dtype.u * float(np.linalg.norm(expected)) + floor)
