"""What one case of a bench is, ready to be measured: its contenders, its work, and who judges their answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.bench.contender import Contender, Outputs

if TYPE_CHECKING:
    from export.parity import ParityReport

Judge = Callable[[Mapping[str, Outputs]], "ParityReport"]


@dataclass(frozen=True)
class Work:
    """What there is to compute, whoever computes it.

    Attributes:
        flops: Floating-point operations of the matrix products, None where they could not be counted.
        bytes: Least memory traffic: inputs, weights and outputs once each.
        how: How both were counted, in words.
    """

    flops: int | None
    bytes: int
    how: str


@dataclass(frozen=True)
class Workload:
    """One case.

    Attributes:
        name: As the tables call it.
        sizes: Its sizes by name, for the JSON.
        dtype: "fp32" or "fp16".
        contenders: In the order of the tables; the first of kind "as exported" is the baseline.
        work: What there is to compute.
        judge: Outputs of each contender by its key -> its row of a parity report against float64.
        items: What a call computes, and how many of it, as ("tokens", 1024).
    """

    name: str
    sizes: Mapping[str, int]
    dtype: str
    contenders: tuple[Contender, ...]
    work: Work
    judge: Judge
    items: tuple[str, int]


def key(contender: Contender) -> str:
    """Returns what tells a contender from the others of a workload."""
    return f"{contender.name} ({contender.route})" if contender.route else contender.name


class Recorded:
    """Answers that were given already, as a parity candidate."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    def run(self, feeds: object) -> Outputs:
        """Returns the answers, whatever is asked."""
        return self._outputs
