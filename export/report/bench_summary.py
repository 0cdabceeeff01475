"""What a bench's rows say in short, case by case: this project against the graph by hand, the tools and PyTorch.

It reads the JSON document of `bench`, so that a kept result and a fresh one are shown alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from export.errors import UsageError

OURS, EXPORT, HAND, TOOL, CONTRIB, TORCH = "attnproof", "as exported", "by hand", "tool", "ort operator", "pytorch"
NEAR = 0.97
"""What share of the best graph by hand counts as having arrived there."""

Document = dict[str, Any]
RowJson = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One case in short; each row is None where there is none that was timed and right.

    Attributes:
        case: The case's JSON.
        export: The baseline.
        ours: This project's graph, of the export where it is slowest.
        own: How many times as fast this project's graph is as the very export it was made of, where that is least.
        hand: The fastest graph by hand.
        tool: The tool that comes closest to us on the same export, or is ahead.
        contrib: ONNX Runtime's own operator, the fastest.
        torch: The fastest of PyTorch.
    """

    case: Document
    export: RowJson | None
    ours: RowJson | None
    hand: RowJson | None
    tool: RowJson | None
    contrib: RowJson | None
    torch: RowJson | None
    own: dict[str, float] | None = None

    @property
    def arrived(self) -> str:
        """Says whether our graph is as fast as the best by hand: "yes", "equal" (within the noise) or "no"; "-"."""
        if self.hand is None or self.hand["ours"] is None:
            return "-"
        return "yes" if self.hand["ours"]["value"] >= NEAR else verdict(self.hand["ours"], "equal", "no")

    @property
    def ahead(self) -> str:
        """Says whether our graph is faster than what every tool made of the same export: "yes", "equal", "no", "-"."""
        if self.tool is None or self.tool["ours"] is None:
            return "-"
        return "yes" if self.tool["ours"]["value"] > 1 and not _equal(self.tool["ours"]) else verdict(self.tool["ours"])


def joined(documents: Sequence[Document]) -> Document:
    """Returns results of one machine, one day and the same versions as one document; their commands are listed.

    Raises:
        UsageError: They were measured with different versions, machines, threads or seeds.
    """
    first = documents[0]
    for name in ("schema", "versions", "machine", "threads", "seed", "device"):
        if any(document[name] != first[name] for document in documents):
            found = "; ".join(sorted({str(document[name]) for document in documents}))
            raise UsageError(f"The results differ in {name} ({found}): measure them anew in one go.")
    ceilings = {n: max(d["ceilings"][n] for d in documents) for n in ("flops_per_second", "bytes_per_second")}
    return {
        **first,
        "command": "`, `".join(document["command"] for document in documents),
        "date": max(document["date"] for document in documents),
        "ceilings": ceilings,
        "cases": [case for document in documents for case in document["cases"]],
    }


def verdict(ratio: dict[str, float], equal: str = "equal", less: str = "no") -> str:
    """Returns "yes" where a ratio is above 1, `equal` where it is within twice its spread of 1, else `less`."""
    return equal if _equal(ratio) else "yes" if ratio["value"] > 1 else less


def lines(document: Document) -> list[Line]:
    """Returns a line for every case."""
    return [_line(case) for case in document["cases"]]


def _line(case: Document) -> Line:
    timed = [row for row in case["rows"] if row["status"] == "timed" and row["speedup"] is not None]
    ours = [row for row in timed if row["kind"] == OURS and row["stage"] == "lowered"]
    tools = [row for row in timed if row["kind"] == TOOL and row["ours"] is not None]
    exported = [row["ours"] for row in timed if row["kind"] == EXPORT and row["stage"] == "exported" and row["ours"]]
    return Line(
        case=case,
        own=min(exported, key=lambda ratio: float(ratio["value"]), default=None),
        export=next((row for row in timed if row["kind"] == EXPORT), None),
        ours=min(ours, key=_speed, default=None),
        hand=_fastest(timed, HAND),
        tool=min(tools, key=lambda row: float(row["ours"]["value"]), default=None),
        contrib=_fastest(timed, CONTRIB),
        torch=_fastest(timed, TORCH),
    )


def _fastest(rows: Iterable[RowJson], kind: str) -> RowJson | None:
    return max((row for row in rows if row["kind"] == kind), key=_speed, default=None)


def _speed(row: RowJson) -> float:
    return float(row["speedup"]["value"])


def _equal(ratio: dict[str, float]) -> bool:
    return abs(ratio["value"] - 1) <= 2 * ratio["spread"]
