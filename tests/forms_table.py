"""The table of forms in docs/forms.md: `python tests/forms_table.py` builds everything in it and writes it.

Every form is built by each of its exporters at each dtype; what the builds said goes to tests/forms_table.json, and the
table between the markers of that page is made from that. `tests/test_forms_build.py` builds a part again and compares.
"""

import argparse
import json
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from export import build
from export.errors import ToolkitError
from export.model import registry

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402

JSON = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "forms.md"
MARKED = "forms"
SMS = (89, 120)
ENGINE_DTYPES = ("fp16", "bf16", "fp32")
RUN_DTYPES = ("fp32", "fp16")
NAMES = {"dynamo": "dynamo", "torchscript": "TorchScript"}

Row = dict[str, Any]


def engines(form: str, dtype: str, place: Path) -> Row:
    """Returns what a TensorRT-RTX build of a form by its first exporter says: stages, one-op counts, kernels."""
    try:
        report = build(
            form, out=str(place / f"{form}.{dtype}"), target="tensorrt-rtx", dtype=dtype, sm=SMS, force=True,
            exporter=registry.get(form).exporters[0],
        )  # fmt: skip
    except ToolkitError as error:
        return {"refused": str(error)}
    stages = {row.stage: row.status for row in report.parity.rows if row.status != "not run"}
    failed = {row.stage for row in report.parity.failures}
    kernels = {}
    for engine in report.engines:
        choices = list(engine.attentions.values())
        kernels[str(engine.sm)] = "none" if not choices else "fused" if all(c.fused for c in choices) else "decomposed"
    why = sorted({c.why for e in report.engines for c in e.attentions.values() if not c.fused})
    ops = [row for row in report.attentions if row.status != "kept"]
    return {
        "stages": {stage: "fail" if stage in failed else "ok" for stage in stages},
        "one_op": len(ops),
        "ropes": sum(
            n.op_type == "RotaryEmbedding" for n in onnx.load(place / f"{form}.{dtype}" / "fused.onnx").graph.node
        ),
        "kept": [row.reason for row in report.attentions if row.status == "kept"],
        "kernels": kernels,
        "why": why,
    }


def parity(form: str, exporter: str, dtype: str, place: Path) -> str:
    """Returns "ok", or why a form does not come through an exporter right at every CPU stage at a dtype."""
    try:
        report = build(
            form,
            out=str(place / f"{form}.{exporter}.{dtype}"),
            target="ort",
            dtype=dtype,
            exporter=exporter,
            force=True,
        )
    except ToolkitError as error:
        return str(error)
    ran = {row.stage for row in report.parity.rows if row.status != "not run"}
    missing = {"pytorch", "exported", "fused", "lowered"} - ran
    return next(iter([*report.failures, *(f"{stage} was not run" for stage in sorted(missing))]), "ok")


def row(form: str) -> Row:
    """Returns everything the table says about a form."""
    facts = registry.get(form)
    with tempfile.TemporaryDirectory() as place:
        return {
            "form": form,
            "attentions": facts.attentions,
            "ropes": facts.ropes,
            "engines": {dtype: engines(form, dtype, Path(place)) for dtype in ENGINE_DTYPES},
            "parity": {
                exporter: {dtype: parity(form, exporter, dtype, Path(place)) for dtype in RUN_DTYPES}
                for exporter in facts.exporters
            },
        }


def refreshed(old: Row, dtype: str) -> Row:
    """Returns a row with the engines of one dtype built again."""
    with tempfile.TemporaryDirectory() as place:
        return {**old, "engines": {**old["engines"], dtype: engines(old["form"], dtype, Path(place))}}


def markdown(rows: list[Row]) -> str:
    """Returns the table, and below it each exception with its reason."""
    lines = [
        "| form | attentions | made one op | RoPE ops | dynamo | TorchScript | RTX fp16 | RTX bf16 | RTX fp32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reasons: dict[str, tuple[list[str], list[str]]] = {}
    for r in rows:
        first = r["engines"]["fp16"]
        cells = [f"`{r['form']}`", r["attentions"], first.get("one_op", "-"), f"{first.get('ropes', '-')}/{r['ropes']}"]
        cells += [_parity(r["parity"].get(exporter)) for exporter in ("dynamo", "torchscript")]
        cells += [_engine(r["engines"][dtype]) for dtype in ENGINE_DTYPES]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        for where, reason in _reasons(r):
            places, forms = reasons.setdefault(reason, ([], []))
            places += [where] if where not in places else []
            forms += [r["form"]] if r["form"] not in forms else []
    everyone = [r["form"] for r in rows]
    notes = [f"- {', '.join(w)}, {_those(forms, everyone)}: {reason}" for reason, (w, forms) in reasons.items()]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _parity(by_dtype: dict[str, str] | None) -> str:
    if by_dtype is None:
        return "-"
    right = [dtype for dtype, outcome in by_dtype.items() if outcome == "ok"]
    return ", ".join(right) or "no"


def _engine(facts: Row) -> str:
    if "refused" in facts:
        return "refused"
    kinds = set(facts["kernels"].values())
    if kinds == {"none"}:
        return "builds"
    if len(kinds) == 1:
        return kinds.pop()
    return ", ".join(f"SM {sm} {kind}" for sm, kind in facts["kernels"].items())


def _those(forms: list[str], everyone: list[str]) -> str:
    others = [form for form in everyone if form not in forms]
    if len(others) < len(forms):
        return "all but " + ", ".join(f"`{form}`" for form in others) if others else "all"
    return ", ".join(f"`{form}`" for form in forms)


def _reasons(r: Row) -> list[tuple[str, str]]:
    """Returns (where, sentence) of each exception."""
    found = []
    for dtype, facts in r["engines"].items():
        for text in [facts["refused"]] if "refused" in facts else [*facts["why"], *facts["kept"]]:
            found.append((f"RTX {dtype}", text))
    for exporter, outcomes in r["parity"].items():
        texts = {dtype: re.sub(r" \(and \d+ more cases\)$", "", text) for dtype, text in outcomes.items()}
        found += [(f"{NAMES[exporter]} {dtype}", text) for dtype, text in texts.items() if text != "ok"]
    return found


def main(words: list[str]) -> int:
    """Builds the rows that are named (all by default) and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("forms", nargs="*", help="forms to build again; the others keep their rows")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--dtype", choices=ENGINE_DTYPES, help="build only the engines of this dtype again")
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    args = parser.parse_args(words)
    old = {r["form"]: r for r in json.loads(JSON.read_text())} if JSON.exists() else {}
    names = [] if args.render else args.forms or list(registry.form_names())
    with ProcessPoolExecutor(args.jobs) as pool:
        again = partial(refreshed, dtype=args.dtype)
        jobs = pool.map(again, [old[name] for name in names]) if args.dtype else pool.map(row, names)
        for made in jobs:
            old[made["form"]] = made
            print(made["form"], made["parity"], {d: _engine(f) for d, f in made["engines"].items()}, flush=True)
    rows = [old[name] for name in registry.form_names() if name in old]
    JSON.write_text(json.dumps(rows, indent=1) + "\n")
    marked.write(PAGE, MARKED, markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
