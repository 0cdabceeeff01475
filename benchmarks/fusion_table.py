"""The side-by-side tables of docs/measurements.md and the README's sentence of them, made of the benchmark's JSON."""

from typing import Any

BEGIN, END = "<!-- fusion: begin -->", "<!-- fusion: end -->"

ROUTES = {
    "d18": "dynamo, opset 18",
    "d23": "dynamo, opset 23",
    "d24": "dynamo, opset 24",
    "ts17": "TorchScript, opset 17",
}


def markdown(results: dict[str, Any]) -> str:
    """Returns the page's tables: by route, by architecture, and the pass' time, and how they were measured."""
    rows, tools = results["corpus"], results["tools"]
    seconds = ", ".join(f"{t} {sum(r['tools'][t]['seconds'] for r in rows):.0f} s" for t in tools)
    said = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n".join(
        [
            *_by_route(rows, tools),
            "",
            f"Process time of fusing all of it: {seconds} (ours runs every block before and after; of several model "
            "types only the one that counts is timed).",
            "",
            *_by_architecture(rows, tools),
            "",
            *_pass_times(results["pass_time"], tools),
            "",
            f"Measured {results['date']} on a {results['machine']} by `{results['command']}` with {said}.",
            "",
        ]
    )


def sentence(results: dict[str, Any]) -> str:
    """Returns what the README says of it."""
    rows, tools = results["corpus"], results["tools"]
    exports, blocks, _, *counted = _sums(rows, tools)
    right, wrong = counted[: len(tools)], counted[len(tools) :]
    found = [f"{r} by {t} ({w} wrong)" for t, r, w in zip(tools, right, wrong, strict=True)]
    architectures = len({r["name"] for r in rows})
    return (
        f"Of {blocks} attention blocks in {exports} exports of {architectures} architectures, made one operator in a "
        f"graph that gives what PyTorch gives: {', '.join(found)}.\n"
    )


def with_table(page: str, table: str) -> str:
    """Returns the page with the text between its markers replaced."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def _by_route(rows: list[dict[str, Any]], tools: list[str]) -> list[str]:
    heads = ["exported by", "exports", "blocks", "on arrival", *(f"{t}: right" for t in tools)]
    lines = _heads([*heads, *(f"{t}: wrong" for t in tools)])
    for impl in dict.fromkeys(r["impl"] for r in rows):
        for route, title in ROUTES.items():
            some = [r for r in rows if (r["impl"], r["route"]) == (impl, route)]
            lines += [_line([f"{impl}, {title}", *_sums(some, tools)])] if some else []
    return [*lines, _line(["all", *_sums(rows, tools)])]


def _sums(rows: list[dict[str, Any]], tools: list[str]) -> list[int]:
    counted = [len(rows), *(sum(r[k] for r in rows) for k in ("expected", "arrived"))]
    return counted + [sum(r["tools"][t][k] for r in rows) for k in ("right", "wrong") for t in tools]


def _by_architecture(rows: list[dict[str, Any]], tools: list[str]) -> list[str]:
    lines = _heads(["architecture", "exports", "blocks", *(f"{t}: right (wrong)" for t in tools)])
    for name in dict.fromkeys(r["name"] for r in rows):
        some = [r for r in rows if r["name"] == name]
        cells = [name, len(some), sum(r["expected"] for r in some)]
        for t in tools:
            right, wrong = (sum(r["tools"][t][k] for r in some) for k in ("right", "wrong"))
            cells.append(f"{right} ({wrong})" if wrong else right)
        lines.append(_line(cells))
    return lines


def _pass_times(rows: list[dict[str, Any]], tools: list[str]) -> list[str]:
    lines = _heads(["the pass alone", "nodes", *tools])
    for key in dict.fromkeys((r["layers"], r["impl"], r["route"], r["nodes"]) for r in rows):
        layers, impl, route, nodes = key
        found = {r["tool"]: r for r in rows if (r["layers"], r["impl"], r["route"], r["nodes"]) == key}
        cells = [_time(found.get(t)) for t in tools]
        lines.append(_line([f"llama, {layers} layers, {impl}, {ROUTES[route]}", nodes, *cells]))
    return lines


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return row["said"] if row["seconds"] is None else f"{row['seconds']:.2f} s, {row['blocks']} blocks"


def _heads(heads: list[str]) -> list[str]:
    return [_line(heads), "|" + "---|" * len(heads)]


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"
