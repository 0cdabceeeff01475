"""`python benchmarks/whole_models.py`: the models of examples/ through `build`, an engine for each architecture.

Each is built from its factory without a cache: exported, fused, lowered, built for every SM, judged against float64.
What the reports say goes to benchmarks/results/whole_models.json, and a table of docs/measurements.md is made of that.
`tests/test_whole_model_builds.py` builds small versions of both again.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import marked

import export
from export.report.record import Report
from export.report.terminal import byte_size

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "whole_models.json"
PAGE = ROOT / "docs" / "measurements.md"
MARKED = "whole models"
MODELS = {"BERT-like": "examples/bert_like.py:make", "LLaMA-like": "examples/llama_like.py:make"}
SMS = (80, 86, 89, 120)
SHAPES = {"batch": "1:1:2", "length": "1:32:32"}
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "tensorrt-rtx")

Row = dict[str, Any]


def built(name: str, source: str, sms: tuple[int, ...], shapes: dict[str, str], dtype: str, place: Path) -> Row:
    """Returns what a build of one model says: what each attention became, time, memory and parity."""
    report = export.build(
        source,
        out=str(place / name),
        target="tensorrt-rtx",
        sm=sms,
        shapes=shapes,
        dtype=dtype,
        force=True,
        cache=False,
    )
    return row(name, report)


def row(name: str, report: Report) -> Row:
    """Returns the row of a report."""
    ran = [r for r in report.parity.rows if r.status != "not run"]
    return {
        "model": name,
        "source": report.spec["source"].removeprefix(f"{ROOT}/"),
        "dtype": report.spec["dtype"],
        "profile": {dim: list(sizes) for dim, sizes in report.profile.items()},
        "passed": report.passed,
        "stages": {stage: _worst(stage, ran) for stage in dict.fromkeys(r.stage for r in ran)},
        "attentions": [
            {
                "name": a.name,
                "block": a.block,
                "op": a.op,
                "mask": a.mask,
                "rope": a.rope,
                "heads": [a.heads, a.kv_heads],
            }
            for a in report.attentions
        ],
        "engines": [
            {
                "sm": e.sm,
                "seconds": round(e.seconds, 2),
                "size": e.size,
                "scratch": e.scratch,
                "memory": e.memory,
                "kernels": {n: list(k.kernels) if k.fused else None for n, k in e.attentions.items()},
            }
            for e in report.engines
        ],
        "seconds": None if report.seconds is None else round(report.seconds, 1),
        "memory": report.memory,
        "builder": report.builder,
    }


def _worst(stage: str, rows: list[Any]) -> float:
    return max((round(r.ratio, 3) for r in rows if r.stage == stage and r.ratio is not None), default=0.0)


def markdown(results: Row) -> str:
    """Returns the table, and below it how its numbers were had."""
    lines = [
        "| model | SM | attentions in a fused MHA kernel | built in | builder's memory | engine | scratch memory |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for r in results["rows"]:
        for e in r["engines"]:
            fused = sum(kernels is not None and len(kernels) == 1 for kernels in e["kernels"].values())
            cells = (f"{e['seconds']:.1f} s", _size(e["memory"]), _size(e["size"]), _size(e["scratch"]))
            lines.append(f"| {r['model']} | {e['sm']} | {fused} of {len(r['attentions'])} | {' | '.join(cells)} |")
        worst = ", ".join(f"{stage} {ratio:.2f}" for stage, ratio in r["stages"].items())
        first, last = (f"`{r['attentions'][i]['block']}`" for i in (0, -1))
        shapes = ", ".join(f"{dim} {low} to {high}" for dim, (low, _, high) in r["profile"].items())
        notes.append(
            f"- {r['model']} (`{r['source']}`, {r['dtype']}, {shapes}): blocks {first} to {last}; {r['seconds']:.0f} s "
            f"for everything, {_size(r['memory'])} of memory in its process; error/budget {worst}."
        )
    said = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    notes.append(f"\nMeasured {results['date']} on a {results['machine']} by `{results['command']}` with {said}.")
    return "\n".join([*lines, "", *notes]) + "\n"


def _size(size: int | None) -> str:
    return "-" if size is None else byte_size(size)


def main(words: list[str]) -> int:
    """Builds the models that are named (both by default) and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; the others keep their rows"
    )
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    args = parser.parse_args(words)
    unknown = [name for name in args.models if name not in MODELS]
    if unknown:
        parser.error(f"there is no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    if not args.render:
        old = {r["model"]: r for r in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
        for name in args.models or MODELS:
            with tempfile.TemporaryDirectory() as place:
                old[name] = built(name, str(ROOT / MODELS[name]), SMS, SHAPES, "fp16", Path(place))
            results = {
                "schema": 1,
                "date": date.today().isoformat(),
                "machine": f"{os.cpu_count()}-core {platform.machine().replace('x86_64', 'x86')} CPU",
                "versions": {package: version(package) for package in PACKAGES},
                "seed": 0,
                "command": " ".join(["python benchmarks/whole_models.py", *words]),
                "rows": [old[name] for name in MODELS if name in old],
            }
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    marked.write(PAGE, MARKED, markdown(json.loads(RESULTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
