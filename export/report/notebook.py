"""Results as a notebook shows them: small HTML tables without styles of their own, everything in them escaped.

Jupyter calls `_repr_html_` on what a cell returns: https://ipython.readthedocs.io/en/stable/config/integrating.html
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.fuse.rows import Attention
    from export.parity import ParityReport
    from export.report.record import Report

_COLORS = {"PASSED": "#116329", "FAILED": "#a40e26"}


def of_report(report: "Report") -> str:
    """Returns a build or a check: the verdict, why it failed, its attentions, the worst row of each stage."""
    failed = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.failures)
    page = report.folder / "report.html"
    return (
        _verdict(report.passed)
        + f"<p>{escape(str(report.spec.get('source', '')))}: {escape(report.parity.summary())}; "
        + f"<code>{escape(str(page))}</code> shows all of it</p>"
        + (f"<ul>{failed}</ul>" if failed else "")
        + of_attentions(report.attentions)
        + _worst(report.parity)
    )


def of_parity(report: "ParityReport") -> str:
    """Returns a parity check: the verdict, and its rows."""
    rows = [
        (row.case, row.stage, row.status.upper(), _number(row.max_error), _number(row.ratio), row.reason)
        for row in report.rows
    ]
    head = ("case", "stage", "status", "largest error", "error / budget", "reason")
    return _verdict(report.passed) + _table(head, rows)


def of_attentions(rows: "Sequence[Attention]") -> str:
    """Returns the rows about attentions."""
    from export.report.attentions import counts, heads, traits, verified

    header = ("attention", "status", "code", "op", "mask", "rope", "H/Hkv x D", "error / budget", "reason")
    cells = [(r.name, r.status, r.code, r.op, *traits(r), heads(r), verified(r), r.reason) for r in rows]
    return _table(header, cells) + f"<p>{escape(counts(rows).strip())}</p>"


def _worst(parity: "ParityReport") -> str:
    found = []
    for stage in dict.fromkeys(row.stage for row in parity.rows):
        worst = parity.worst(stage)
        ratio = "NOT RUN" if worst is None else _number(worst.ratio)
        found.append((stage, worst.case if worst else "-", ratio))
    return _table(("stage", "worst case", "error / budget"), found)


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _verdict(passed: bool) -> str:
    word = "PASSED" if passed else "FAILED"
    return f'<p><strong style="color:{_COLORS[word]}">{word}</strong></p>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
