"""How the result of `run` reads, on a terminal and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engines.runner import Latency
from export.report import table

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Output:
    """One output of a run.

    Attributes:
        name, dtype, shape: Of the array.
        nonfinite: How many of its values are NaN or infinite.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nonfinite: int


@dataclass(frozen=True)
class Run:
    """What `run` did.

    Attributes:
        model: What the user named.
        file: The file that ran.
        why: Why that file.
        provider: The provider that computed it.
        fallback: Nodes that another provider computed: bookkeeping on shapes, or None where the runtime does not say.
        dims: Sizes the random inputs were drawn with; empty for inputs of the user's.
        outputs: In the graph's order.
        latency: Where --repeat was asked for.
        saved: The .npz file, where -o was given.
    """

    model: str
    file: str
    why: str
    provider: str
    fallback: tuple[str, ...] | None
    dims: Mapping[str, int]
    outputs: tuple[Output, ...]
    latency: Latency | None
    saved: str | None

    def as_json(self) -> dict[str, Any]:
        """Returns the run as the JSON of `run --json`."""
        return {"schema": 1, **asdict(self)}

    def as_text(self) -> str:
        """Returns the run as lines for a terminal."""
        rows = [(o.name, o.dtype, "x".join(map(str, o.shape)) or "scalar", o.nonfinite) for o in self.outputs]
        lines = [f"{self.file} on {self.provider}\n"]
        if self.dims:
            lines.append(f"random inputs with {', '.join(f'{n}={size}' for n, size in self.dims.items())}\n")
        lines.append(table.render(("output", "dtype", "shape", "NaN or inf"), rows))
        if self.latency:
            timed = f"p50 {self.latency.p50_ms:.3f} ms, p90 {self.latency.p90_ms:.3f} ms"
            lines.append(f"latency {timed} over {self.latency.repeat} runs\n")
        if self.saved:
            lines.append(f"saved {self.saved}\n")
        return "".join(lines)


def describe(name: str, array: "np.ndarray") -> Output:
    """Returns the row of an output."""
    import numpy as np

    floating = "float" in array.dtype.name
    nonfinite = int(np.count_nonzero(~np.isfinite(array))) if floating else 0
    return Output(name, array.dtype.name, array.shape, nonfinite)
