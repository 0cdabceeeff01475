"""The decode loop of a build on one screen: its cache, its graphs, and how far each case is from one forward."""

from collections.abc import Mapping
from typing import Any

from export.report import table
from export.report.record import Engine, engines_from


def render(decode: Mapping[str, Any] | None) -> str:
    """Returns the lines about a decode loop; nothing where none was asked for."""
    if decode is None:
        return ""
    rows = decode["parity"]["rows"]
    cases = tuple(dict.fromkeys(row["case"] for row in rows))
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = {row["case"]: row for row in rows if row["stage"] == stage}
        lines.append((stage, *(_cell(mine[case]) for case in cases)))
    parts = [_cache(decode), table.render((f"error/budget over {decode['steps']} steps", *cases), lines)]
    for engine in engines(decode):
        for name, kernel in engine.attentions.items():
            made = {True: "fused", False: "decomposed", None: "unknown"}[kernel.fused]
            parts.append(f"{engine.file}: {name}: {made}\n")
    return "".join(parts)


def engines(decode: Mapping[str, Any] | None) -> tuple[Engine, ...]:
    """Returns the engines of a decode loop."""
    return engines_from((decode or {}).get("engines", ()))


def _cache(decode: Mapping[str, Any]) -> str:
    graphs = dict.fromkeys(decode["graphs"].values())
    whose = "the model's own" if decode["own"]["caches"] else "added here"
    return (
        f"decode: {' and '.join(graphs)}: a {decode['kind']} cache of {len(decode['caches'])} tensors, {whose}, for "
        f"{decode['capacity']} tokens\n"
    )


def _cell(row: Mapping[str, Any]) -> str:
    if row["status"] == "not run":
        return "NOT RUN"
    if row["status"] == "fail":
        return "FAILED"
    return "ok" if row["ratio"] is None else f"{float(row['ratio']):.2f}"
