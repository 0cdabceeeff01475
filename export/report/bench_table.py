"""How a bench reads, on a terminal and in the docs: a table a case, what was NOT RUN and why, a table of cases."""

from typing import Any

from export.report import table
from export.report.bench_legend import LEGEND
from export.report.bench_summary import Document, Line, RowJson, lines

NARROW = "by hand, padding at the end"
FOR_P99 = 100
"""Calls from which a 99th percentile is more than the largest of them."""

_COLUMNS = (
    "contender",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "spread",
    "CPU ms",
    "speed-up",
    "attnproof is",
    "1000/s",
    "GFLOP/s",
    "of floor",
    "MiB",
    "error/budget",
)


def render(document: Document) -> str:
    """Returns the text for stdout; its last line is PASSED, or FAILED where an answer of ours is wrong."""
    parts = [_head(document)]
    parts += [_case(case) for case in document["cases"]]
    parts += [_not_run(document), summary(document), _targets(document), LEGEND]
    parts += ["FAILED\n" if wrong(document) else "PASSED\n"]
    return "\n".join(part for part in parts if part)


def _targets(document: Document) -> str:
    """Returns a line for every target of a GPU run, "" where there are none."""
    rows = [
        (
            target["status"],
            target["name"],
            target["case"] or "-",
            "-" if target["value"] is None else f"{target['value']:.2f} ±{target['spread'] * target['value']:.2f}",
            f"{target['bound']:g}",
            target["reason"],
        )
        for target in document.get("targets", ())
    ]
    return table.render(("target", "what", "case", "found", "asked", "how"), rows) if rows else ""


def wrong(document: Document) -> bool:
    """Says whether an answer of this project was outside its budget."""
    return any(
        row["status"] == "WRONG" and row["kind"] == "attnproof" for case in document["cases"] for row in case["rows"]
    )


def summary(document: Document) -> str:
    """Returns a line for every case, in short."""
    header = (
        "case",
        "as exported, ms",
        "attnproof",
        "own export",
        "by hand",
        "arrived",
        "best tool",
        "ahead",
        "ort operator",
        "pytorch",
        "of floor",
    )
    return table.render(header, [_short(line) for line in lines(document)])


def markdown(document: Document) -> str:
    """Returns the docs' table of cases, with what is needed to read and repeat it."""
    rows = [
        "| case | as exported | attnproof | over its own export | best by hand | best tool | com.microsoft | PyTorch "
        "| of floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines(document):
        export = "-" if line.export is None else f"{line.export['timing']['p50_ms']:.3g} ms"
        cells = [
            line.case["name"],
            export,
            f"**{_both(line, line.ours)}**",
            _plus_minus(line.own),
            f"{_both(line, line.hand)} {_name(line.hand)}",
            f"{_both(line, line.tool)} {_name(line.tool)}",
            _both(line, line.contrib),
            f"{_both(line, line.torch)} {_name(line.torch)}",
            _percent(None if line.ours is None else line.ours["of_floor"]),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    said = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return "\n".join(
        [
            *rows,
            "",
            f"Speed-up over the first plain export ({_baselines(document)}), each the median of interleaved rounds ± "
            "half their interquartile range; in parentheses by processor time, all threads together, which other work "
            "on the machine disturbs less; fp32, q, k and v in, no projections. *attnproof* and *over its own export* "
            "are the slowest of the exports; *best tool* is the one that attnproof on the same export is least ahead "
            "of. "
            f"{_narrow(document)}"
            f"Measured {document['date']} on a {document['machine']}, {document['pinning']}, by "
            f"`{document['command']}` with {said}.",
        ]
    )


def _rounds(case: Document) -> str:
    """Returns how often a case's contenders were timed, "" where nothing was."""
    timings = [row["timing"] for row in case["rows"] if row["timing"] is not None]
    calls = sorted({timing["calls"] for timing in timings})
    many = f"{calls[0]} to {calls[-1]}" if len(calls) > 1 else "".join(map(str, calls))
    return f"; {timings[0]['rounds']} rounds of {many} calls" if timings else ""


def _baselines(document: Document) -> str:
    return ", ".join(dict.fromkeys(case["baseline"].partition("(")[2].rstrip(")") or "-" for case in document["cases"]))


def _narrow(document: Document) -> str:
    """Returns how attnproof compares with graphs by hand that need the padding at the end, "" where none was timed."""
    found = [
        (row["ours"]["value"], row["name"])
        for case in document["cases"]
        for row in case["rows"]
        if row["kind"] == NARROW and row["ours"] is not None
    ]
    if not found:
        return ""
    least, most = (f"{end(value for value, _ in found):.2f}" for end in (min, max))
    return f"*{found[0][1]}*, by hand, needs the padding at the end: attnproof is {least} to {most} times as fast. "


def _head(document: Document) -> str:
    top, product = document["ceilings"], "bf16" if document["device"] == "cuda" else "fp32"
    return (
        f"{document['command']}\n"
        f"{document['date']}, {document['machine']}, {document['pinning']}, seed {document['seed']}\n"
        f"{', '.join(f'{name} {number}' for name, number in document['versions'].items())}\n"
        f"ceilings measured here: {top['flops_per_second'] / 1e9:.1f} GFLOP/s (matrix product, {product}), "
        f"{top['bytes_per_second'] / 1e9:.1f} GB/s (copy)\n"
    )


def _case(case: Document) -> str:
    flops = "FLOPs not counted" if case["flops"] is None else f"{case['flops'] / 1e6:.1f} MFLOP"
    floor = "" if case["floor_ms"] is None else f", roofline floor {case['floor_ms']:.3g} ms"
    sizes = " ".join(f"{name}={size}" for name, size in case["sizes"].items())
    head = (
        f"{case['name']} ({case['dtype']}; {sizes}): {flops}, {case['bytes'] / 2**20:.2f} MiB moved{floor}; "
        f"speed-up over: {case['baseline'] or 'nothing was timed'}; 1000/s: thousand {case['item']} a second"
        f"{_rounds(case)}\n"
    )
    timed = [row for row in case["rows"] if row["timing"] is not None]
    return head + table.render(_COLUMNS, [_row(row) for row in timed])


def _row(row: RowJson) -> tuple[str, ...]:
    time: dict[str, Any] = row["timing"]
    ours = row["ours"]
    return (
        _title(row),
        *(f"{time[name]:.3f}" for name in ("p50_ms", "p90_ms")),
        f"{time['p99_ms']:.3f}" if time["rounds"] * time["calls"] >= FOR_P99 else "-",
        f"{100 * time['spread']:.1f}%",
        "-" if time["cpu_ms"] is None else f"{time['cpu_ms']:.3f}",
        speedup(row),
        "-" if ours is None or _is_ours(row) else _compared(ours),
        f"{row['items_per_second'] / 1000:.1f}",
        "-" if row["gflops"] is None else f"{row['gflops']:.1f}",
        _percent(row["of_floor"]),
        "-" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.1f}",
        f"{row['budget_used']:.2f}{' WRONG' if row['status'] == 'WRONG' else ''}"
        if row["budget_used"] is not None
        else "-",
    )


def _short(line: Line) -> tuple[str, ...]:
    export = line.export
    return (
        line.case["name"],
        "-" if export is None else f"{export['timing']['p50_ms']:.3f}",
        speedup(line.ours),
        _plus_minus(line.own),
        speedup(line.hand),
        line.arrived,
        speedup(line.tool),
        line.ahead,
        speedup(line.contrib),
        speedup(line.torch),
        _percent(None if line.ours is None else line.ours["of_floor"]),
    )


def _not_run(document: Document) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in document["cases"]:
        for row in case["rows"]:
            if row["status"] == "NOT RUN":
                reasons.setdefault((_title(row), row["reason"]), []).append(case["name"])
            elif row["status"] == "WRONG":
                reasons.setdefault((f"WRONG: {_title(row)}", row["reason"]), []).append(case["name"])
    count = len(document["cases"])
    return "".join(
        f"{'' if title.startswith('WRONG') else 'NOT RUN: '}{title}"
        f"{'' if len(cases) == count else ' on ' + ', '.join(cases)}: {reason}\n"
        for (title, reason), cases in reasons.items()
    )


def _title(row: RowJson) -> str:
    return f"{row['name']} ({row['route']})" if row["route"] else str(row["name"])


def _name(row: RowJson | None) -> str:
    return "-" if row is None else str(row["name"])


def _is_ours(row: RowJson) -> bool:
    return bool(row["kind"] == "attnproof" and row["stage"] == "lowered")


def speedup(row: RowJson | None) -> str:
    """Returns a row's speed-up over the graph as exported and half its interquartile range, "-" where there is none."""
    return _plus_minus(None if row is None else row["speedup"])


def _plus_minus(ratio: dict[str, float] | None) -> str:
    return "-" if ratio is None else f"{ratio['value']:.2f} ±{ratio['spread'] * ratio['value']:.2f}"


def _both(line: Line, row: RowJson | None) -> str:
    """Returns a speed-up by the wall clock and, in parentheses, by processor time."""
    if row is None or line.export is None or row["timing"]["cpu_ms"] is None:
        return speedup(row)
    return f"{speedup(row)} ({line.export['timing']['cpu_ms'] / row['timing']['cpu_ms']:.2f})"


def _compared(ratio: dict[str, float]) -> str:
    if abs(ratio["value"] - 1) <= 2 * ratio["spread"]:
        return f"equal ({_plus_minus(ratio)})"
    return _plus_minus(ratio)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"
