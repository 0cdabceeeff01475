"""What every runner answers to, whichever runtime is behind it: tensor specs, `run`, `latency`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engines.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

WARMUP_RUNS = 3


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: Name in the graph.
        dtype: numpy or ml_dtypes name, e.g. "float16", "bfloat16", "int64", "bool".
        shape: One entry an axis: an int where the size is fixed, else the name of the symbolic dimension, e.g.
            ("batch", 8, "length", 64) for [batch, H, length, D]. An axis without a name is called "<tensor>.<axis>".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Latency:
    """Wall time of one inference, inputs and outputs already where the runtime wants them.

    Attributes:
        repeat: How many timed runs the percentiles are over; warm-up runs are not among them.
        p50_ms: Median, milliseconds.
        p90_ms: 90th percentile, milliseconds.
    """

    repeat: int
    p50_ms: float
    p90_ms: float


class Runner(Protocol):
    """Something that turns named arrays into named arrays, on the device it says."""

    @property
    def provider(self) -> str:
        """The provider that computes: "cpu", "cuda", "tensorrt", "tensorrt-rtx"."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs a feed must hold, in the graph's order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the graph's order."""

    @property
    def fallback(self) -> tuple[str, ...] | None:
        """Nodes that another provider computes, "name (operator)"; None where the runtime does not say."""

    def run(self, feeds: Mapping[str, "np.ndarray"]) -> dict[str, "np.ndarray"]:
        """Returns every output by name. Raises UsageError for feeds that do not fit."""

    def latency(self, feeds: Mapping[str, "np.ndarray"], repeat: int) -> Latency:
        """Returns how long one inference takes on these inputs."""


def measure(run: Callable[[], None], repeat: int, warmup: int = WARMUP_RUNS) -> Latency:
    """Returns the latency of `run`, which must come back only when the result is complete.

    Args:
        run: One inference.
        repeat: Timed runs, at least 1.
        warmup: Runs before them, not timed: the first ones allocate, compile and autotune.

    Raises:
        UsageError: `repeat` is below 1.
    """
    if repeat < 1:
        raise UsageError(f"{repeat} timed runs measure nothing: repeat at least once.")
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return Latency(repeat, percentile(times, 50), percentile(times, 90))


def percentile(values: list[float], percent: int) -> float:
    """Returns the smallest value that at least `percent` % of the values do not exceed.

    This is the nearest-rank definition: the answer is a time that was measured, never an interpolation.
    """
    rank = -(-len(values) * percent // 100)  # ceiling
    return sorted(values)[max(rank, 1) - 1]
