"""Parity case by stage as the page shows it: a cell each, and for every stage that failed where it is worst."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def number(value: Any) -> float | None:
    """Returns a number of the JSON, which writes NaN and infinity as text."""
    return None if value is None else float(value)


def of(parity: Json) -> dict[str, Any]:
    """Returns "stages", "lines" (a case, then [text, class, explanation] by stage) and "failed", by stage."""
    rows = parity["rows"]
    cells = {(row["case"], row["stage"]): cell(row) for row in rows}
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    return {
        "stages": stages,
        "lines": [(case, [cells.get((case, stage), ("", "none", "")) for stage in stages]) for case in cases],
        "failed": [_failed(stage, rows) for stage in stages if any(_lost(row, stage) for row in rows)],
    }


def _lost(row: Json, stage: str) -> bool:
    return bool(row["stage"] == stage and row["status"] == "fail")


def _failed(stage: str, rows: Sequence[Json]) -> dict[str, Any]:
    """Returns what is said of a stage that failed: its worst case in words, the others on request."""
    lost = sorted((row for row in rows if _lost(row, stage)), key=lambda row: -(number(row["ratio"]) or math.inf))
    said = [f"{row['case']}: {row['reason'] or 'outside its budget'}{_worst(row)}" for row in lost]
    return {"stage": stage, "worst": said[0], "others": said[1:]}


def _worst(row: Json) -> str:
    if row["worst"] is None:
        return ""
    have, right, room = (_rounded(row[key]) for key in ("actual", "expected", "budget"))
    return f" Worst at {row['output']}{row['worst']}: {have}, float64 has {right}, budget {room}."


def _rounded(value: Any) -> str:
    known = number(value)
    return "unknown" if known is None else f"{known:.6g}"


def cell(row: Json) -> tuple[str, str, str]:
    """Returns the text, the class and the explanation of a cell."""
    if row["status"] == "not run":
        return "NOT RUN", "not-run", row["reason"]
    ratio = number(row["ratio"])
    if row["status"] == "ok":
        return (
            "ok" if ratio is None else f"ok {ratio:.2f}",
            "ok",
            row["reason"] or "error over budget where it is largest",
        )
    nan = "nan" in (row["expected"], row["actual"]) or "NaN" in row["reason"]
    return "NaN" if nan else "fail" if ratio is None else f"fail {ratio:.3g}", "nan" if nan else "fail", row["reason"]
