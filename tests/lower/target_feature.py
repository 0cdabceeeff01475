"""Everything an attention or a rotary embedding can say in ONNX, one small graph each: what a row is.

Half precision unless a row is about the type, because only halves have fused kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

SIZES = (
    {"B": 2, "S": 5, "T": 7, "P": 3, "PS": 8, "PT": 10, "N": 12},
    {"B": 3, "S": 1, "T": 4, "P": 2, "PS": 3, "PT": 6, "N": 12},
)
"""Two calls of every graph, the second with one query."""
DIMS = {
    "B": (1, 2, 4), "S": (1, 128, 512), "T": (1, 128, 512), "P": (1, 64, 128), "PS": (2, 192, 640),
    "PT": (2, 192, 640), "N": (512, 640, 1024),
}  # fmt: skip
"""The profile that engines are built for: min, opt and max of each symbolic dimension."""


@dataclass(frozen=True)
class Feature:
    """One row of the table.

    Attributes:
        name: What the graph says, in the operator's own words.
        group: The line of the README it belongs to.
        make: Returns the graph.
        truth: Returns the graph that says in standard operators what this one means, where this one is not standard.
    """

    name: str
    group: str
    make: Callable[[], ir.Model] = field(compare=False)
    truth: Callable[[], ir.Model] | None = field(default=None, compare=False)

    @property
    def sizes(self) -> tuple[dict[str, int], ...]:
        """The calls it is compared at."""
        return tuple({**sizes, "B": 4} for sizes in SIZES) if "[B,S,T]" in self.name else SIZES


FEATURES: dict[str, Feature] = {}


def add(group: str, name: str, make: Callable[[], ir.Model], truth: Callable[[], ir.Model] | None = None) -> None:
    if name in FEATURES:
        raise ValueError(f"two features are called {name}")
    FEATURES[name] = Feature(name, group, make, truth)


def text(group: str, name: str, source: str, truth: str = "") -> None:
    made = (lambda: ir.from_onnx_text(truth)) if truth else None
    add(group, name, lambda: ir.from_onnx_text(source), made)
