"""Which number a masked score is set to when a form's upstream says a large finite one (-1e9, -1e6)."""

import torch

HALF_FILL = -(2.0**15)
"""The fill in float16: half its range, so that adding a score to it stays finite."""


def finite_fill(fill: float, dtype: torch.dtype) -> float:
    """Returns `fill` where `dtype` holds it, else `HALF_FILL`.

    float16 ends at -65504. There PyTorch refuses `masked_fill(..., -1e9)`, and an exporter folds the constant to -inf,
    which makes a fully masked row NaN instead of the mean of V. Other rows are unaffected: exp(fill) is 0 either way.
    """
    return fill if fill >= torch.finfo(dtype).min else HALF_FILL
