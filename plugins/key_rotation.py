"""Where K is rotated, as data: inside the kernel, again for every tile of queries, or once before it.

Inside, a tile of 128 queries reads, besides each key (2 bytes an element in half precision), its partner in the
rotation and a cosine and a sine in float32: 10 bytes an element from the L2 cache, for each of the H / G query heads
that share the key. Before it, K is read and written once, 4 bytes an element of device memory, and one more kernel is
launched. With N = B G T D elements of K, S / 128 tiles, L2 at 5 TB/s, memory at 2 TB/s and 4 us a launch (the order of
magnitude of an A100 or H100),

    inside = S / 128 * (H / G) * N * 10 / 5e12,        before = 4 N / 2e12 + 4e-6 seconds.

One batch row of 16 heads of 64 costs the same either way at S = T = 560; a larger batch or grouped queries bring that
down, fewer heads move it up. **This is an estimate: no GPU run has set it yet.** `python benchmarks/tune_kernel.py` on
a GPU does, in the data of `plugins.kernels.tuning`.
"""

from dataclasses import dataclass

from plugins.kernels import tuning


@dataclass(frozen=True)
class Crossover:
    """The rule.

    Attributes:
        keys: Most keys up to which K is rotated inside the kernel.
        device: The GPU that set it; "" for the estimate above.
    """

    keys: int
    device: str = ""


def crossover(sm: int | None = None) -> Crossover:
    """Returns the rule for a compute capability, e.g. 90; None where it is not known."""
    row = tuning.row("key_rotation", sm)
    return Crossover(row["keys"], row.get("device", ""))


def inside(keys: int | None, sm: int | None = None) -> bool:
    """Says whether the kernel rotates K itself.

    Args:
        keys: Number of keys of the usual call; None where it is not known, which is rotated before.
        sm: Compute capability of the GPU, None where it is not known.
    """
    return keys is not None and keys <= crossover(sm).keys
