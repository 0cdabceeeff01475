"""Tile sizes as data: which variants of the kernel to try for a head size, in what order, on which architecture.

The first that fits is taken: shared memory within the architecture's limit and no register spilled, both read from the
compiled kernel. A measurement on a GPU changes the order here, never the code.
"""

from dataclasses import dataclass

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
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


_SMALL = (Variant(32, 32, 4, 2), Variant(16, 32, 4, 1), Variant(16, 16, 4, 1))
"""The last resort of every list."""

_HALF = {
    16: (Variant(128, 128, 4, 3), Variant(128, 64, 4, 3), Variant(64, 64, 4, 3)),
    32: (Variant(128, 128, 4, 3), Variant(128, 64, 4, 3), Variant(64, 64, 4, 2)),
    64: (Variant(128, 128, 8, 2), Variant(128, 64, 4, 2), Variant(128, 64, 8, 2), Variant(64, 64, 4, 2)),
    128: (Variant(128, 64, 8, 2), Variant(128, 32, 8, 2), Variant(64, 64, 4, 2), Variant(64, 32, 4, 1)),
    256: (Variant(128, 32, 8, 2), Variant(64, 32, 8, 2), Variant(64, 32, 8, 1), Variant(32, 32, 8, 1)),
}
"""16-bit types: block of the head size -> variants, best first."""

_FULL = {
    16: (Variant(64, 64, 4, 2), Variant(64, 32, 4, 2)),
    32: (Variant(64, 64, 4, 2), Variant(64, 32, 4, 2)),
    64: (Variant(64, 64, 8, 2), Variant(64, 32, 4, 2), Variant(32, 32, 4, 2)),
    128: (Variant(64, 32, 8, 2), Variant(32, 32, 4, 2), Variant(32, 32, 8, 1)),
    256: (Variant(32, 32, 8, 2), Variant(32, 32, 8, 1), Variant(16, 32, 8, 1)),
}
"""float32: block of the head size -> variants, best first."""


_DECODE = {
    16: (Variant(16, 128, 4, 3),),
    32: (Variant(16, 128, 4, 3),),
    64: (Variant(16, 128, 4, 3), Variant(16, 64, 4, 3)),
    128: (Variant(16, 64, 4, 3), Variant(16, 64, 4, 2)),
    256: (Variant(16, 32, 4, 3), Variant(16, 32, 4, 2)),
}
"""The decode kernel, any type: block of the head size -> variants, best first."""


def variants(block: int, dtype: str, kernel: str = ATTENTION) -> tuple[Variant, ...]:
    """Returns the variants to try for a head size, best first.

    Args:
        block: The head size rounded up to a power of two, 16 to 256.
        dtype: "fp16", "bf16" or "fp32".
        kernel: ATTENTION or DECODE.
    """
    if kernel == DECODE:
        return (*_DECODE[block], *_SMALL)
    return (*(_FULL if dtype == "fp32" else _HALF)[block], *_SMALL)
