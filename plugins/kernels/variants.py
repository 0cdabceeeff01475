"""Tile sizes: which variants of a kernel to try for a head size, in what order, on which architecture.

The order is data (`plugins.kernels.tuning`). The first that fits is taken: shared memory within the architecture's
limit and no register spilled, both read from the compiled kernel. A measurement on a GPU changes the order, never the
code.
"""

from dataclasses import dataclass
from typing import Any

from plugins.kernels import tuning

SHARED_MEMORY = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
"""KiB of shared memory one block may use, by compute capability (CUDA C++ Programming Guide, compute capabilities)."""
ATTENTION, DECODE, COMBINE = "rotary_attention", "split_attention", "combine"
"""The kernels, by the names of their functions."""


@dataclass(frozen=True)
class Variant:
    """One way to tile the kernel.

    Attributes:
        block_m: Query rows of one program.
        block_n: Keys of one step.
        warps: Warps of one program, 32 threads each.
        stages: Depth of the pipeline that loads the next keys.
        peeled: Whether tiles of keys that every query sees are walked first, by a loop that masks nothing.
        descriptors: Whether K and V are loaded by tensor descriptors (TMA on SM 90 and above).
        specialized: Whether the compiler may give loads and products warps of their own.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    peeled: bool = False
    descriptors: bool = False
    specialized: bool = False

    def as_row(self) -> list[int | str]:
        """Returns it as the data has it: the four numbers, then the names of what is on."""
        numbers = [self.block_m, self.block_n, self.warps, self.stages]
        return [*numbers, *(name for name in ("peeled", "descriptors", "specialized") if getattr(self, name))]

    @staticmethod
    def of_row(row: list[Any]) -> "Variant":
        """Returns the variant of `as_row`."""
        return Variant(*row[:4], **dict.fromkeys(row[4:], True))


_SMALL = (Variant(32, 32, 4, 2), Variant(16, 32, 4, 1), Variant(16, 16, 4, 1))
"""The last resort of every list."""


def variants(block: int, dtype: str, kernel: str = ATTENTION, sm: int | None = None) -> tuple[Variant, ...]:
    """Returns the variants to try for a head size, best first: those measured on the GPU's kind, then the estimates.

    Args:
        block: The head size rounded up to a power of two, 16 to 256.
        dtype: "fp16", "bf16" or "fp32".
        kernel: ATTENTION or DECODE.
        sm: Compute capability; None for the estimates alone.
    """
    what = {"kernel": kernel, "dtype": dtype, "head_size": block}
    rows = ([] if sm is None else [tuning.row("kernels", sm, **what)], [tuning.general("kernels", **what)])
    found = [Variant.of_row(listed) for one in rows for row in one for listed in row["variants"]]
    return tuple(dict.fromkeys((*found, *_SMALL)))
