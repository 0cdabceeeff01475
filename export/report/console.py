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
from export.fuse.rows import Attention
from export.report import decode, latency
from export.report.attentions import heads, traits, verified
from export.report.record import Report
from export.report.terminal import FAILED, PASSED, kernel, stages

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_log = logging.getLogger("export")
_WIDE, _NARROW = 140, 100
"""Columns from which on each column of the table has its place, and below which two share one."""
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
        for part in _parts(report, console.width):
            console.print(part)
    stdout.write(caught.get())


def _parts(report: Report, width: int) -> "Iterator[RenderableType]":
    from rich.text import Text

    yield Text(f"truth: {report.truth}", style="dim")
    if report.attentions:
        yield _table(report, width)
        if not (report.folder / latency.NAME).is_file():
            yield Text(
                f"latency: NOT RUN; {latency.how(str(report.spec.get('source')), str(report.folder))}", style="dim"
            )
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


def _table(report: Report, width: int) -> "RenderableType":
    """Returns the table; a narrow terminal gets less of what is the same in each row, and cells of several lines."""
    from rich import box
    from rich.table import Table

    wide, measured = width >= _WIDE, (report.folder / latency.NAME).is_file()
    gap = " " if wide else "\n"
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1) if wide else (0, 1, 0, 0))
    drawn.add_column("block", overflow="fold")
    engines = (f"SM {engine.sm}" for engine in report.engines)
    ops = ("H/Hkv x D", "op") if width >= _NARROW else ("H/Hkv x D\nop",)
    columns = ("mask", "rope", *ops, *engines, f"error /{gap}budget")
    for title in (*(("form",) if wide else ()), *columns, *(("latency",) if wide or measured else ())):
        drawn.add_column(title, overflow="fold", no_wrap=title not in ("form", "mask", "latency"))
    for index, row in enumerate(report.attentions):
        op = (heads(row), f"{row.op.removeprefix('ai.onnx::')}{gap}({row.code})")
        drawn.add_row(
            _named(row),
            *([_styled(form(report))] if wide else []),
            *map(_styled, traits(row)),
            *(_styled(text, row.status) for text in (op if len(ops) == 2 else ("\n".join(op),))),
            *(_styled(kernel(report, index, engine.sm)) for engine in report.engines),
            _styled(verified(row).replace("/ ", f"/{gap}")),
            *([latency.of_attention(report, row)] if wide or measured else []),
        )
    return drawn


def _named(row: Attention) -> "Text":
    """Returns the module's path, where it is known; the node's name is for what the sentences below are about."""
    from rich.text import Text

    if row.block and row.status == "kept":
        return Text.assemble(row.block, "\n", (row.name, "dim"))
    return Text(row.block or row.name)


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
