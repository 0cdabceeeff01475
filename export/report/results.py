"""What a command found out, as a list of results: the common ground of the formats that continuous integration reads.

Each parity case of each stage is a result, and each attention; what else made the verdict FAILED is one of its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from export.fuse.rows import Attention
from export.report.record import Report

Status = Literal["ok", "fail", "kept", "not run"]
_SOURCE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?: in .*)?", re.DOTALL)


@dataclass(frozen=True)
class Result:
    """One thing that was judged.

    Attributes:
        suite: "parity", "attention" or "verdict".
        group: The stage, the attention's op, or what the sentence is about.
        name: The case, or the attention's name.
        status: "kept" is an attention that stayed decomposed, which nobody required to be fused.
        message: Why; empty where there is nothing to say.
        source: The user's line, as "net.py:12 in forward: code", where it is known.
    """

    suite: str
    group: str
    name: str
    status: Status
    message: str = ""
    source: str | None = None

    @property
    def place(self) -> tuple[str, int] | None:
        """The file and the line of the user's source, where both are known."""
        found = _SOURCE.fullmatch(self.source or "")
        return (found["file"], int(found["line"])) if found else None


def of_report(report: Report) -> list[Result]:
    """Returns the results of a build or a check; at least one has failed where the report has."""
    found = [
        Result("parity", row.stage, row.case, _parity_status(row.status), row.reason) for row in report.parity.rows
    ]
    required = report.spec.get("require") == "all"
    found += of_attentions(report.attentions, required=required)
    shown = {f"{row.stage}, case {row.case}:" for row in report.parity.failures}
    more = [s for s in report.failures if not any(s.startswith(begin) for begin in shown)]
    return found + [Result("verdict", "verdict", _title(s), "fail", s) for s in more]


def of_attentions(rows: Iterable[Attention], *, required: bool = False, unmet: str | None = None) -> list[Result]:
    """Returns a result for each attention, and one for a requirement that is not met.

    Args:
        rows: The attentions.
        required: Whether one that stayed decomposed has failed.
        unmet: The sentence of `--require`, where it is not met.
    """
    found = []
    for row in rows:
        status: Status = "ok" if row.status != "kept" else "fail" if required else "kept"
        message = f"{row.code}: {row.reason}" if row.status == "kept" else ""
        found.append(Result("attention", row.op, row.name, status, message, row.source))
    return found + ([Result("verdict", "verdict", _title(unmet), "fail", unmet)] if unmet else [])


def _parity_status(status: str) -> Status:
    return "ok" if status == "ok" else "fail" if status == "fail" else "not run"


def _title(sentence: str) -> str:
    return sentence.partition(":")[0][:80]
