"""A terminal's view: progress bars on stderr while a command works, and the result as one table in colour.

Used only where stdout or stderr is a terminal; what is piped gets the plain text of `export.report.terminal`. rich
makes both, and where it is not installed a terminal gets the plain text too.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from export import progress
from export.report import decode
from export.report.attentions import heads, verified
from export.report.latency import of_attention
from export.report.record import Report
from export.report.terminal import FAILED, PASSED, kernel, stages

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_log = logging.getLogger("export")
_STYLES = {"fused": "green", "already": "green", "kept": "yellow", "decomposed": "yellow", "ok": "green"}


def is_terminal(stream: Any) -> bool:
    """Says whether a stream is a terminal that shows colour and rich is there to draw on it."""
    if not getattr(stream, "isatty", lambda: False)() or os.environ.get("TERM") == "dumb":
        return False
    from importlib.util import find_spec

    return find_spec("rich") is not None


@contextmanager
def watching() -> Iterator[None]:
    """Shows a bar for each step that works, on stderr if that is a terminal and steps are not silenced."""
    if not is_terminal(sys.stderr) or not _log.isEnabledFor(logging.INFO):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    tasks: dict[str, Any] = {}

    def show(name: str, done: int, total: int, note: str) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=None, note="")
        bars.update(tasks[name], completed=done, total=total or None, note=note[:60])

    with bars, progress.watched(show):
        yield


def write(report: Report) -> None:
    """Writes the result to stdout, which is a terminal; the last line is PASSED or FAILED."""
    from rich.console import Console

    from export.report import stdout

    console = Console(highlight=False)
    with console.capture() as caught:
        for part in _parts(report):
            console.print(part)
    stdout.write(caught.get())


def _parts(report: Report) -> "Iterator[RenderableType]":
    from rich.text import Text

    yield Text(f"truth: {report.truth}", style="dim")
    if report.attentions:
        yield _table(report)
    if decoded := decode.render(report.decode):
        yield Text(decoded)
    for lead, style, sentences in (
        ("note", "dim", report.notes),
        ("NOT RUN", "yellow", report.not_run),
        ("failed", "red", report.failures),
    ):
        for sentence in sentences:
            yield Text.assemble((f"{lead}: ", style), sentence)
    for row in report.attentions:
        if row.status == "kept":
            where = f" [{row.source}]" if row.source else ""
            yield Text.assemble(("kept ", "yellow"), f"{row.name}: {row.code}: {row.reason}{where}")
    yield Text(summary(report))
    yield Text(PASSED, style="bold green") if report.passed else Text(FAILED, style="bold red")


def _table(report: Report) -> "RenderableType":
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("block", "form", "mask", "rope", "H/Hkv x D", "op"):
        drawn.add_column(title, overflow="fold")
    for engine in report.engines:
        drawn.add_column(f"SM {engine.sm}")
    drawn.add_column("error / budget")
    drawn.add_column("latency")
    for index, row in enumerate(report.attentions):
        kernels = [_styled(kernel(report, index, engine.sm)) for engine in report.engines]
        facts = (row.name, form(report), row.mask, row.rope, heads(row))
        op = f"{row.op} ({row.code})"
        drawn.add_row(
            *map(_styled, facts), _styled(op, row.status), *kernels, _styled(verified(row)), of_attention(report, row)
        )
    return drawn


def _styled(text: str, of: str | None = None) -> "Text":
    from rich.text import Text

    return Text(text, style=_STYLES.get(of or text, ""))


def form(report: Report) -> str:
    """Returns which form, factory or file the attentions are of, without its folders."""
    return os.path.basename(str(report.spec.get("source", "-")))


def summary(report: Report) -> str:
    """Returns the one line that sums up: attentions, stages, the error that came closest to its budget, the folder."""
    from export.fuse.rows import summarise

    count = summarise(report.attentions)
    parts = [f"{count.found} attentions: {count.fused} fused, {count.kept} kept, {count.already} already one op"]
    parts.append(f"parity {report.parity.summary()}")
    worst = [row for stage in stages(report) if (row := report.parity.worst(stage)) is not None]
    if worst:
        most = max(worst, key=lambda row: row.ratio or 0.0)
        parts.append(f"closest to its budget {most.ratio:.2f} ({most.stage}, {most.case})")
    return "; ".join([*parts, str(report.folder)])
