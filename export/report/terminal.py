"""The result of `build` and `check` on one screen: stages, attentions, what was not run, and last the verdict."""

from collections.abc import Iterable

from export.report import attentions, decode, lowering, table
from export.report.record import Report

PASSED, FAILED = "PASSED", "FAILED"


def render(report: Report) -> str:
    """Returns the text for stdout; its last line is PASSED or FAILED."""
    parts = [
        f"truth: {report.truth}\n",
        _stages(report),
        _attentions(report),
        _engines(report),
        decode.render(report.decode),
        _cost(report),
        _list("lowered", lowering.lines((s.attention, s.action, s.why) for s in report.steps)),
        _list("note", report.notes),
        _list("NOT RUN", report.not_run),
        _list("failed", report.failures),
    ]
    return "\n".join(part for part in parts if part) + f"{PASSED if report.passed else FAILED}\n"


def stages(report: Report) -> tuple[str, ...]:
    """Returns the stages in the order they were run."""
    return tuple(dict.fromkeys(row.stage for row in report.parity.rows))


def _stages(report: Report) -> str:
    # No column for a budget: each element has its own, and that of the largest error is seldom the tightest.
    header = ("stage", "cases", "typical error", "worst case", "its error", "error/budget", "verdict")
    return table.render(header, [_stage(report, stage) for stage in stages(report)])


def _stage(report: Report, stage: str) -> tuple[str, ...]:
    mine = [row for row in report.parity.rows if row.stage == stage]
    ran = [row for row in mine if row.status != "not run"]
    failed = any(row.status == "fail" for row in mine)
    worst = report.parity.worst(stage)
    return (
        stage,
        f"{len(ran)}/{len(mine)}",
        _scientific(ran[0].max_error if ran else None),  # every grid begins with its typical case
        worst.case if worst else "-",
        _scientific(worst.max_error if worst else None),
        f"{worst.ratio:.2f}" if worst and worst.ratio is not None else "-",
        "FAILED" if failed else "ok" if ran else "NOT RUN",
    )


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _attentions(report: Report) -> str:
    columns = {f"SM {engine.sm}": [kernel(report, i, engine.sm) for i in _indexes(report)] for engine in report.engines}
    return attentions.render(report.attentions, columns)


def _indexes(report: Report) -> range:
    return range(len(report.attentions))


def kernel(report: Report, index: int, sm: int) -> str:
    """Returns what the attention at `index` became in the engine for `sm`: "fused", "decomposed" or "unknown"."""
    found = report.kernel(report.attentions[index], sm)
    if found is None or found.fused is None:
        return "unknown"
    return "fused" if found.fused else "decomposed"


def _engines(report: Report) -> str:
    rows = [
        (
            e.file,
            f"{e.seconds:.1f} s{', cached' if e.cached else ''}",
            byte_size(e.size),
            "-" if e.scratch is None else byte_size(e.scratch),
            e.achieved.precision,
            _mebibytes(e.memory),
            f"{sum(k.fused is True for k in e.attentions.values())} of {len(e.attentions)}",
        )
        for e in (*report.engines, *decode.engines(report.decode))
    ]
    header = ("engine", "built in", "size", "scratch memory", "computes in", "builder's memory", "attentions fused")
    lines = [table.render(header, rows)] if rows else []
    for engine in report.engines:
        for name, became in engine.attentions.items():
            if not became.fused:
                lines.append(f"SM {engine.sm} {name}: {became.why}\n")
    return "".join(lines)


def _cost(report: Report) -> str:
    if report.seconds is None or report.reused:
        return ""
    return f"{report.seconds:.1f} s in all, {_mebibytes(report.memory)} of memory in this process at its peak.\n"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f} MiB"


def byte_size(size: int) -> str:
    """Returns a number of bytes in a unit that reads well, e.g. "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.1f} GiB"


def _list(lead: str, sentences: Iterable[str]) -> str:
    return "".join(f"{lead}: {sentence}\n" for sentence in sentences)
