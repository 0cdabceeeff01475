"""`python benchmarks/fusion.py`: three tools over the corpus side by side: what they fuse, what is right, how fast.

Every export of `tests/corpus` is given to this project, to onnxscript's `ort_fusions` and to ONNX Runtime's transformer
optimizer (each of its model types; the best result counts). A block counts as fused if it is one attention operator, as
right if that graph gives what PyTorch gives (or what the export gives, where an exporter errs), as `make corpus` judges
it; a graph with fused blocks that gives something else, or does not run, is wrong, and no tool says so. A second part
times the pass alone on deep models. The results go to benchmarks/results/fusion.json; the README's tables are made of
it.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusion_tools import ATTENTION, HEADS, HIDDEN, TOOLS, Made, blocks

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "corpus"))

RESULTS = Path(__file__).parent / "results" / "fusion.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- fusion: begin -->", "<!-- fusion: end -->"
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "onnx-shape-inference")
DEPTHS = (8, 32, 128)
SEED = 0


@dataclass
class Score:
    """What one tool made of one export: blocks that are one operator, right ones, and the process time of fusing."""

    fused: int = 0
    right: int = 0
    wrong: int = 0
    seconds: float = 0.0
    said: str = ""
    how: str = ""


@dataclass
class Export:
    """One export and its scores; `arrived` blocks were one operator when it came."""

    name: str
    impl: str
    route: str
    expected: int
    arrived: int
    nodes: int
    tools: dict[str, Score] = field(default_factory=dict)


def compared(job: tuple[str, str, tuple[str, ...], Path, tuple[str, ...]]) -> list[Export]:
    """Returns the scores on one architecture and implementation through each route that exports and runs."""
    import corpus_module
    import onnx_ir as ir
    from corpus_count import count
    from corpus_export import export
    from corpus_judge import OK, Bench, opened
    from corpus_registry import ENTRIES

    name, impl, routes, folder, tools = job
    entry = ENTRIES[name]
    try:
        module = corpus_module.build(entry, impl)
    except ValueError:  # transformers has no such implementation
        return []
    expected = count(module, tuple(corpus_module.draw(entry, 0).values())).blocks
    bench, rows = Bench(entry, module), []
    for route in routes:
        path = export(entry, impl, route, folder, module).path
        if path is None:
            continue
        before = opened(path)
        if OK not in bench.compare(before, before)[0].values():
            continue  # the exporter's: there is nothing that a fused graph could be compared with
        model = ir.load(path)
        row = Export(name, impl, route, expected, blocks(model), sum(1 for _ in model.graph))
        rows.append(row)
        for tool in tools:
            tried: dict[bytes | None, Score] = {}
            for made in TOOLS[tool](path):
                if made.model not in tried:  # most model types give one and the same graph
                    tried[made.model] = score(made, row, bench, before)
            row.tools[tool] = max(tried.values(), key=lambda s: (s.right, -s.wrong, s.fused, -s.seconds))
    return rows


def score(made: Made, row: Export, bench: Any, before: Any) -> Score:
    """Returns how a tool's graph does on an export."""
    from corpus_judge import AS_EXPORTED, NO_EVIDENCE, OK, opened

    if made.model is None:
        return Score(seconds=made.seconds, said=made.said, how=made.how)
    said = bench.compare(before, opened(made.model))[1]
    wrong = [text for text in said.values() if text not in (OK, AS_EXPORTED, NO_EVIDENCE)]
    fused = min(made.blocks, row.expected)
    right = 0 if wrong else fused
    new = max(fused - row.arrived, 0)
    return Score(fused, right, max(new, 1) if wrong else 0, made.seconds, wrong[0][:200] if wrong else "", made.how)


def timed(layers: int, routes: Iterable[str], tools: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """Returns the process time of each tool's pass on a deep llama, ours without verification; the best of two runs."""
    from corpus_export import export
    from corpus_registry import ENTRIES

    llama = ENTRIES["llama"]
    deep = replace(llama, name=f"llama-{layers}", settings={**llama.settings, "num_hidden_layers": layers})
    rows = []
    for route in routes:
        path = export(deep, "eager", route, folder).path
        if path is None:
            continue
        for tool in tools:
            rows.append({"layers": layers, "route": route, "tool": tool, **_pass_time(tool, path)})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _pass_time(tool: str, path: Path) -> dict[str, Any]:
    import onnx_ir as ir
    from fusion_tools import _quiet

    nodes = sum(1 for _ in ir.load(path).graph)
    if tool == "attnproof":
        from export.fuse import Options, fuse

        def run(model: ir.Model) -> int:
            return blocks(fuse(model, Options(verify=False)).model)
    elif tool == "onnxscript ort_fusions":
        from onnxscript.rewriter.ort_fusions import optimize_for_ort

        def run(model: ir.Model) -> int:
            return blocks(optimize_for_ort(model)[0])
    else:
        from onnxruntime.transformers import optimizer

        def run(model: ir.Model) -> int:
            made = optimizer.optimize_model(str(path), "gpt2", HEADS, HIDDEN, opt_level=0)
            return blocks(ir.from_proto(made.model))

    found, seconds = 0, []
    for _ in range(2):
        model = ir.load(path)
        start = time.process_time()
        try:
            with _quiet():
                found = run(model)
        except Exception as error:  # a tool's failure is its answer
            return {"nodes": nodes, "seconds": None, "blocks": 0, "said": f"{type(error).__name__}: {error}"[:200]}
        seconds.append(time.process_time() - start)
    return {"nodes": nodes, "seconds": round(min(seconds), 3), "blocks": found, "said": ""}


def machine() -> str:
    """Returns the machine in words that name no owner."""
    return f"{os.cpu_count()}-core {platform.machine().replace('x86_64', 'x86')} CPU"


def markdown(results: dict[str, Any]) -> str:
    """Returns the README's tables."""
    tools = results["tools"]
    lines = [
        "| route | exports | blocks | on arrival | " + " | ".join(f"{t}: right" for t in tools) + " | "
        + " | ".join(f"{t}: wrong" for t in tools) + " |",
        "|" + "---|" * (4 + 2 * len(tools)),
    ]  # fmt: skip
    routes = {
        "d18": "dynamo, opset 18",
        "d23": "dynamo, opset 23",
        "d24": "dynamo, opset 24",
        "ts17": "TorchScript, opset 17",
    }
    rows = results["corpus"]
    for route, title in [*routes.items(), ("", "all")]:
        some = [r for r in rows if route in ("", r["route"])]
        if not some:
            continue
        cells = [title, len(some), *(sum(r[k] for r in some) for k in ("expected", "arrived"))]
        cells += [sum(r["tools"][t]["right"] for r in some) for t in tools]
        cells += [sum(r["tools"][t]["wrong"] for r in some) for t in tools]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    seconds = ", ".join(f"{t} {sum(r['tools'][t]['seconds'] for r in rows):.0f} s" for t in tools)
    names = len({r["name"] for r in rows})
    lines += [
        "",
        f"{names} architectures; process time of fusing all of it: {seconds} (ours runs every block before and after).",
        "",
        "| llama, eager | nodes | " + " | ".join(f"{t}" for t in tools) + " |",
        "|" + "---|" * (2 + len(tools)),
    ]
    keys = dict.fromkeys((r["layers"], r["route"], r["nodes"]) for r in results["pass_time"])
    for layers, route, nodes in keys:
        found = {r["tool"]: r for r in results["pass_time"] if (r["layers"], r["route"]) == (layers, route)}
        cells = [_time(found.get(t)) for t in tools]
        lines.append(f"| {layers} layers, {routes[route]} | {nodes} | " + " | ".join(cells) + " |")
    said = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines += ["", f"Measured {results['date']} on a {results['machine']} by `{results['command']}` with {said}."]
    return "\n".join(lines) + "\n"


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return "fails" if row["seconds"] is None else f"{row['seconds']:.2f} s, {row['blocks']} blocks"


def with_table(readme: str, table: str) -> str:
    """Returns the README with the text between its markers replaced."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def main(words: list[str]) -> int:
    """Measures what is named, everything by default, and writes the JSON and the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures (default: all)")
    parser.add_argument("--impls", nargs="+", default=["eager", "sdpa"])
    parser.add_argument("--routes", nargs="+", default=["d18", "d23", "d24", "ts17"])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS), help="layers of the pass-time table")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "attnproof-corpus")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the README from the JSON")
    args = parser.parse_args(words)
    if not args.render:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(measured(args, words), indent=1) + "\n")
    if args.out == RESULTS:
        README.write_text(with_table(README.read_text(), markdown(json.loads(RESULTS.read_text()))))
    else:
        print(markdown(json.loads(args.out.read_text())))
    return 0


def measured(args: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Returns everything the tables are made of."""
    from corpus_pool import outcomes
    from corpus_registry import ENTRIES

    tools = tuple(args.tools)
    jobs = [
        (name, impl, tuple(args.routes), args.folder, tools)
        for name in args.names or ENTRIES
        for impl in ENTRIES[name].impls
        if impl in args.impls
    ]
    rows: list[Export] = []
    for made in outcomes(compared, jobs, args.workers, lambda job: []):
        rows += made
        for row in made:
            said = "  ".join(f"{t}: {s.right}/{s.fused}" for t, s in row.tools.items())
            print(f"{row.name:24} {row.impl:6}{row.route:5} {row.expected} blocks  {said}", file=sys.stderr, flush=True)
    rows.sort(key=lambda r: (r.name, r.impl, r.route))
    passes = [row for depth in args.depths for row in timed(depth, ("d18", "ts17"), tools, args.folder)]
    return {
        "schema": 1,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "seed": SEED,
        "command": " ".join(["python benchmarks/fusion.py", *words]),
        "tools": list(tools),
        "operators": sorted(f"{domain or 'ai.onnx'}::{op}" for domain, op in ATTENTION),
        "corpus": [asdict(row) for row in rows],
        "pass_time": passes,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
