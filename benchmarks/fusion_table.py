"""The side-by-side tables of docs/measurements.md and the README's sentence of them, made of the benchmark's JSON."""

from typing import Any

from marked import table

ROUTES = {
    "d18": "dynamo, opset 18",
    "d23": "dynamo, opset 23",
    "d24": "dynamo, opset 24",
    "ts17": "TorchScript, opset 17",
}


def markdown(results: dict[str, Any]) -> str:
    """Returns the page's tables: by route, by architecture, and how they were measured."""
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


def _by_route(rows: list[dict[str, Any]], tools: list[str]) -> list[str]:
    heads = ["exported by", "exports", "blocks", "on arrival", *(f"{t}: right" for t in tools)]
    lines = []
    for impl in dict.fromkeys(r["impl"] for r in rows):
        for route, title in ROUTES.items():
            some = [r for r in rows if (r["impl"], r["route"]) == (impl, route)]
            lines += [[f"{impl}, {title}", *_sums(some, tools)]] if some else []
    return table([*heads, *(f"{t}: wrong" for t in tools)], [*lines, ["all", *_sums(rows, tools)]])


def _sums(rows: list[dict[str, Any]], tools: list[str]) -> list[int]:
    counted = [len(rows), *(sum(r[k] for r in rows) for k in ("expected", "arrived"))]
    return counted + [sum(r["tools"][t][k] for r in rows) for k in ("right", "wrong") for t in tools]


def _by_architecture(rows: list[dict[str, Any]], tools: list[str]) -> list[str]:
    lines = []
    for name in dict.fromkeys(r["name"] for r in rows):
        some = [r for r in rows if r["name"] == name]
        cells = [name, len(some), sum(r["expected"] for r in some)]
        for t in tools:
            right, wrong = (sum(r["tools"][t][k] for r in some) for k in ("right", "wrong"))
            cells.append(f"{right} ({wrong})" if wrong else right)
        lines.append(cells)
    return table(["architecture", "exports", "blocks", *(f"{t}: right (wrong)" for t in tools)], lines)
