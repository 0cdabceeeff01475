"""What a number costs at each dtype under test: unit roundoff, spacing and range, as a table.

numpy only: the fuser's verification uses these without importing torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Precision:
    """One dtype under test.

    Attributes:
        name: "fp32", "fp16", "bf16", or "tf32" (stored as float32, matrix products with 11-bit operands).
        storage: numpy or ml_dtypes name of the tensors' type.
        u: Unit roundoff, 2**-p for a significand of p bits: rounding to nearest is off by at most u, relative.
        smallest: Smallest positive number (subnormal): the error of rounding near zero.
        largest: Largest finite number.
    """

    name: str
    storage: str
    u: float
    smallest: float
    largest: float

    def dtype(self) -> "np.dtype[np.generic]":
        """Returns the numpy type of the tensors; bfloat16 is ml_dtypes'."""
        import ml_dtypes
        import numpy as np

        return np.dtype(ml_dtypes.bfloat16) if self.storage == "bfloat16" else np.dtype(self.storage)

    def ulp(self, x: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
        """Returns the spacing of this precision's numbers at |x|, elementwise; NaN and Inf count as zero."""
        import numpy as np

        magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
        # frexp gives |x| = m * 2**e with m in [0.5, 1): the spacing there is 2u * 2**(e-1).
        _, exponent = np.frexp(magnitude)
        return np.where(magnitude > 0, np.maximum(np.ldexp(self.u, exponent), self.smallest), self.smallest)


PRECISIONS = {
    "fp32": Precision("fp32", "float32", 2.0**-24, 2.0**-149, (2 - 2.0**-23) * 2.0**127),
    "fp16": Precision("fp16", "float16", 2.0**-11, 2.0**-24, 65504.0),
    "bf16": Precision("bf16", "bfloat16", 2.0**-8, 2.0**-133, (2 - 2.0**-7) * 2.0**127),
    "tf32": Precision("tf32", "float32", 2.0**-11, 2.0**-149, (2 - 2.0**-23) * 2.0**127),
}


def precision(name: str) -> Precision:
    """Returns the row of `PRECISIONS` called `name`.

    Raises:
        UsageError: There is none.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        raise UsageError(f"There is no dtype {name!r} to check at. Use one of {', '.join(PRECISIONS)}.") from None
