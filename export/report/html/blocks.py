"""One attention as the page shows it: a row of the table, and what its drawer holds."""

import re
from collections.abc import Mapping
from typing import Any

from export.report.html.layout import layout

Json = Mapping[str, Any]
_LINE = re.compile(r"(?:.*[/\\\\])?(?P<file>[^/\\\\]+?):(?P<line>\d+)(?: in .*)?$", re.DOTALL)


def row(report: Json, attention: Json) -> dict[str, Any]:
    """Returns the cells of the table of attentions."""
    verify = attention["verify"]
    return {
        "name": attention["name"],
        "block": attention.get("block"),
        "status": attention["status"],
        "code": attention["code"],
        "mask": read(attention, "mask"),
        "rope": read(attention, "rope"),
        "heads": heads(attention),
        "op": attention["op"],
        "kernels": [_kernel(engine, attention) for engine in report["engines"]],
        "error": verify and f"{verify['max_error']:.2e}",
        "budget": verify and f"{verify['budget']:.2e}",
        "ratio": verify["max_error"] / verify["budget"] if verify and verify["budget"] else -1.0,
        "verify": "" if verify else "NOT RUN" if attention["status"] == "fused" else "-",
        "source": attention["source"],
        "line": short(attention["source"]),
    }


def read(attention: Json, trait: str) -> str:
    """Returns a trait, "?" for an attention that was kept: nobody read it to the end."""
    return "?" if attention["status"] == "kept" else str(attention[trait])


def short(source: str | None) -> str:
    """Returns "net.py:12" of "/home/me/net.py:12 in forward: y = x": what fits a column."""
    found = _LINE.match(source.split(" in ")[0]) if source else None
    return f"{found['file']}:{found['line']}" if found else source or "-"


def heads(attention: Json) -> str:
    """Returns "8/2 x 64"."""
    query, kv, size = ("?" if attention[key] is None else attention[key] for key in ("heads", "kv_heads", "head_size"))
    return f"{query}/{kv} x {size}"


def drawer(report: Json, attention: Json, pictures: Json | None) -> dict[str, Any]:
    """Returns what the drawer of one attention shows."""
    drawn = (pictures or {}).get("blocks", {}).get(attention["name"], {})
    drawings = {side: layout(drawn[side]) if drawn.get(side) else None for side in ("before", "after")}
    near = [node for side in ("before", "after") if drawn.get(side) for node in drawn[side]["nodes"]]
    after = drawn["after"]["nodes"] if drawn.get("after") else []
    names = {node["name"] for node in near}
    return {
        "name": attention["name"],
        "facts": _facts(report, attention),
        "reason": f"{attention['code']}: {attention['reason']}",
        "change": attention["change"],
        "source": attention["source"],
        "trail": attention.get("trail", []),
        "lowering": [f"{s['action']}: {s['why']}" for s in report["lowering"] if s["attention"] == attention["name"]],
        "rope": [_rotation(r) for r in report.get("rotations", []) if r["name"] in names],
        "casts": {
            "before": [f"{n['name']} {n['note']}" for n in near[: len(near) - len(after)] if n["op"] == "Cast"],
            "after": [f"{n['name']} {n['note']}" for n in after if n["op"] == "Cast"],
        },
        "before": drawings["before"],
        "after": drawings["after"],
        "left_out": {side: drawn[side]["left_out"] if drawn.get(side) else 0 for side in ("before", "after")},
        "weights": drawn.get("weights"),
        "error": drawn.get("error"),
        "not_run": drawn.get("not_run", "The folder has no pictures.json."),
    }


def _facts(report: Json, attention: Json) -> list[list[str]]:
    kept = attention["status"] == "kept"
    facts = [
        ["status", attention["status"]],
        *([["module", attention["block"]]] if attention.get("block") else []),
        ["operator", attention["op"]],
        ["heads", f"{heads(attention)} (query heads / key and value heads x head size)"],
        ["scale", "?" if kept else "-" if attention["scale"] is None else f"{attention['scale']:.6g}"],
        ["softcap", f"{attention['softcap']:g}" if attention["softcap"] is not None else "?" if kept else "none"],
        ["mask", read(attention, "mask")],
        ["RoPE", read(attention, "rope")],
        ["cache", read(attention, "cache")],
        ["rows without keys", "zero, which is new" if attention["masked_rows"] == "zero" else "as before"],
    ]
    for engine in report["engines"]:
        kernel = engine["attentions"].get(attention["name"])
        if kernel:
            cause = f" {kernel['cause']}" if kernel.get("cause") else ""
            facts.append([f"SM {engine['sm']}", f"{kernel['why']}{cause} [{', '.join(kernel['kernels'])}]"])
    return facts


def _rotation(rotation: Json) -> str:
    pairing = f", pairs {rotation['pairing']}" if rotation["pairing"] else ""
    width = f", {rotation['width']} channels turn" if rotation["width"] else ""
    return f"{rotation['name']}: {rotation['status']} ({rotation['code']}){pairing}{width}. {rotation['reason']}"


def _kernel(engine: Json, attention: Json) -> dict[str, str]:
    kernel = engine["attentions"].get(attention["name"])
    made = {True: "fused", False: "decomposed", None: "unknown"}[kernel["fused"] if kernel else None]
    return {"made": made, "why": kernel["why"] if kernel else "The engine's log does not name it."}
