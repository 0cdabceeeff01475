"""What a bench measured for the model of a report: its times before and after fusing.

`python -m export bench SOURCE -o DIR/bench.json` puts them there; nothing is measured here, and what was not
measured reads "-".
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import UsageError
from export.fuse.rows import Attention
from export.report.record import Report

NAME = "bench.json"
_AFTER = ("lowered", "fused")


def load(path: Path) -> dict[str, Any] | None:
    """Returns a bench's JSON document, or None where there is no such file.

    Raises:
        UsageError: The file is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != "bench" or not isinstance(content.get("cases"), list):
        raise UsageError(f"{path} is no result of `python -m export bench --json`.")
    return content


def before_and_after(case: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns the median times in milliseconds of a case's exported graph and of what became of it.

    Both are of one export, the first that has both; None where none has.
    """
    timed = [row for row in case["rows"] if row.get("status") == "timed" and row.get("timing")]
    for route in dict.fromkeys(row.get("route") for row in timed):
        rows = {row.get("stage"): row for row in timed if row.get("route") == route}
        after = next((rows[stage] for stage in _AFTER if stage in rows), None)
        if "exported" in rows and after is not None:
            return float(rows["exported"]["timing"]["p50_ms"]), float(after["timing"]["p50_ms"])
    return None


def how(source: str, folder: str) -> str:
    """Returns the commands that measure what was not: `source` as `build` was given it, `folder` its artifacts."""
    measure = shlex.join(["python", "-m", "export", "bench", source, "-o", f"{folder}/{NAME}"])
    return f"{measure} && {shlex.join(['python', '-m', 'export', 'report', folder])}"


def of_attention(report: Report, row: Attention) -> str:
    """Returns "1.20 -> 0.40 ms" for a model with one attention, whose times are the attention's own; else "-"."""
    bench = load(report.folder / NAME)
    if bench is None or len(report.attentions) != 1 or not bench["cases"]:
        return "-"
    found = before_and_after(bench["cases"][0])
    return "-" if found is None else f"{found[0]:.3g} -> {found[1]:.3g} ms"
