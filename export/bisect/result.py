"""What bisecting found: the record that `bisect --json` prints and the terminal's words are a view of."""

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Parting:
    """A tensor that lies beyond its budget.

    Attributes:
        name: What B calls it.
        key: What A calls it: a tensor, or the path of a module ("#0" for a module's first output).
        ratio: Error over budget where it is largest; infinite for a NaN, None for another shape.
        max_error: The largest absolute error.
        worst: Its coordinate; `expected` and `actual` are the values there.
        reason: What is wrong, a sentence.
    """

    name: str
    key: str
    ratio: float | None
    max_error: float | None
    worst: tuple[int, ...] | None
    expected: float | None
    actual: float | None
    reason: str


@dataclass(frozen=True)
class Node:
    """A node of B.

    Attributes:
        name: Its name, or that of its first output.
        op: Its operator.
        module: The path of the module it comes from, where the exporter recorded it.
        source: The user's PyTorch line, where it was recorded.
    """

    name: str
    op: str
    module: str = ""
    source: str | None = None


@dataclass(frozen=True)
class Cause:
    """An explanation that was computed and gives what B gives.

    Attributes:
        code: Its name in the table, e.g. "mask-dropped".
        sentence: What B does.
        part: "mask", "causal", "scale", "softcap", "rope", "heads", "key-value", "overflow", "weight", ...
        ratio: How far B is from it, in units of the budget; at most 1. None where it was read, not computed.
    """

    code: str
    sentence: str
    part: str
    ratio: float | None = None


@dataclass(frozen=True)
class Bisection:
    """One comparison.

    Attributes:
        a, b: What the user named.
        dtype: The precision compared at.
        truth: What B was judged by.
        cases: How many cases were run.
        compared: How many tensors were.
        case: The case in which they part; None where they do not.
        block: The first block's output beyond budget.
        tensor: The first tensor beyond budget, inside that block.
        node: The node that is wrong, as far as is known.
        suspects: Nodes between the last tensors that agree and `tensor`, where no name tells them apart.
        cause: The likely cause, or None.
        also: Further causes that would give the same.
        notes: What the reader should know.
    """

    a: str
    b: str
    dtype: str
    truth: str
    cases: int
    compared: int
    case: str | None = None
    block: Parting | None = None
    tensor: Parting | None = None
    node: Node | None = None
    suspects: tuple[Node, ...] = ()
    cause: Cause | None = None
    also: tuple[Cause, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every output is within budget in every case."""
        return self.case is None

    def as_json(self) -> dict[str, Any]:
        """Returns the JSON of `bisect --json`."""
        return {"schema": SCHEMA, "equal": self.equal, **asdict(self)}
