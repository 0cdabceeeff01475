"""One thing that is timed: what it is called, what kind of peer it is, and how it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NARROW = "by hand, padding at the end"
"""A graph by hand that is right for some inputs of the exported one only: in the tables, and no yardstick."""
OURS, EXPORT, HAND, PEER, CONTRIB, TORCH = "attnproof", "as exported", "by hand", "tool", "ort operator", "pytorch"
"""Kinds: what this project makes of a file; the file itself; the graph written by hand; what another tool makes of the
same file; ONNX Runtime's own operator by hand; PyTorch."""
YARDSTICK = "yardstick"
"""Kind of what computes something else on purpose, to hold a time against: its answer is not judged."""

Outputs = Mapping[str, Any]


class Unavailable(Exception):
    """A contender that cannot run here; the message says why, and it is reported as NOT RUN."""


@dataclass(frozen=True)
class Opened:
    """A contender that is ready.

    Attributes:
        call: Computes once, and returns when the result is complete.
        outputs: Computes once and returns numpy arrays by output name, for the check.
    """

    call: Callable[[], object]
    outputs: Callable[[], Outputs]


def _nothing() -> None:
    """There is nothing to make beforehand."""


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: As the tables call it.
        kind: One of the kinds of this file.
        open: Makes it ready with the workload's inputs; raises Unavailable where it cannot run here.
        route: Which export it was made of, as "torchscript-17"; "" where it was made of none.
        stage: Which stage of this project it is: "exported", "fused", "lowered"; "" for peers; "set" where
            ONNX Runtime is told to leave an optimisation out.
        prepare: Makes what `open` opens, once, whose memory is not the contender's; raises Unavailable like it.
    """

    name: str
    kind: str
    open: Callable[[], Opened]
    route: str = ""
    stage: str = ""
    prepare: Callable[[], object] = _nothing


def not_here(name: str, kind: str, why: str, route: str = "") -> Contender:
    """Returns a contender that says why it is NOT RUN."""

    def refuse() -> Opened:
        raise Unavailable(why)

    return Contender(name, kind, refuse, route)
