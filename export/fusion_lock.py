"""The lock of a build's fusions: which attentions must stay one op, and which engines' kernels fused.

    {"schema": 1, "attentions": {"node_softmax/Attention": {"op": "ai.onnx::Attention", "kernels": ["sm89"]}}}

It is committed beside the model. A block of the lock that is kept, or that a build no longer has, is a loss; one more
that is fused is not. An architecture that the build made no engine for says nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.build_diff import ONE_OP
from export.errors import UsageError
from export.report.record import Report

SCHEMA = 1


@dataclass(frozen=True)
class Loss:
    """An attention that the lock holds as fused and a build has not.

    Attributes:
        attention: Its name.
        where: "graph", or the architecture as in "sm89".
        code: The rule code of its row; empty where there is no row, or the engine's builder decided.
        reason: Why, a sentence.
    """

    attention: str
    where: str
    code: str
    reason: str

    def __str__(self) -> str:
        code = f"{self.code}: " if self.code else ""
        return f"{self.attention} is no longer fused in {_place(self.where)}: {code}{self.reason}"


def _place(where: str) -> str:
    return "the graph" if where == "graph" else f"the engine for {where}"


def of(report: Report) -> dict[str, Any]:
    """Returns the lock that holds what a build fused."""
    held = {}
    for row in sorted(report.attentions, key=lambda row: row.name):
        if row.status in ONE_OP:
            kernels = [f"sm{e.sm}" for e in report.engines if (k := report.kernel(row, e.sm)) and k.fused]
            held[row.name] = {"op": row.op, "kernels": kernels}
    return {"schema": SCHEMA, "attentions": held}


def read(path: Path) -> dict[str, Any]:
    """Returns a lock.

    Raises:
        UsageError: The file is no lock of this schema.
    """
    try:
        lock: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if lock["schema"] != SCHEMA:
            raise UsageError(f"{path} has schema {lock['schema']}; this version reads {SCHEMA}. Use --write-lock.")
        for held in lock["attentions"].values():
            str(held["op"]), list(held["kernels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a fusion lock ({error!r}). Write it anew with --write-lock.") from error
    return lock


def losses(lock: dict[str, Any], report: Report) -> tuple[Loss, ...]:
    """Returns what a lock holds and a build has not, in the lock's order."""
    rows = {row.name: row for row in report.attentions}
    found = []
    for name, held in lock["attentions"].items():
        row = rows.get(name)
        if row is None:
            others = ", ".join(rows) or "none"
            found.append(Loss(name, "graph", "", f"No attention of this name is in the graph; it has {others}."))
            continue
        if row.status not in ONE_OP:
            found.append(Loss(name, "graph", row.code, row.reason))
            continue
        for engine in report.engines:
            kernel = report.kernel(row, engine.sm)
            if f"sm{engine.sm}" in held["kernels"] and kernel is not None and kernel.fused is False:
                found.append(Loss(name, f"sm{engine.sm}", "", kernel.why))
    return tuple(found)
