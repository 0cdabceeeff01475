"""`python benchmarks/fusion.py`: three tools over the corpus side by side: what they fuse, what is right, how fast.

Each export of a sample of `tests/corpus` (`SAMPLE`; `--all` takes all of it) is given to this project, to onnxscript's
`ort_fusions` and to ONNX Runtime's transformer optimizer (each of its model types; the best result counts), each with a
limit on its process time. A block counts as fused if it is one attention operator, as right if that graph gives what
PyTorch gives (or what the export gives, where an exporter errs), as `make corpus` judges it; a graph with fused blocks
that gives something else, or does not run, is wrong, and no tool says so. The results go to
benchmarks/results/fusion.json; the tables of docs/measurements.md and the README's sentence are made of it.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fusion_tools
import marked
from fusion_table import markdown, sentence
from fusion_tools import ATTENTION, TOOLS, Made, blocks

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "corpus"))

RESULTS = Path(__file__).parent / "results" / "fusion.json"
PAGE, README = ROOT / "docs" / "measurements.md", ROOT / "README.md"
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "onnx-shape-inference")
SAMPLE = (
    "bert", "distilbert", "mpnet", "deberta_v2", "modernbert", "clip_text", "gpt2", "gpt_neox", "gptj", "bloom",
    "llama", "mistral", "qwen3", "gemma2", "phi", "falcon", "cohere", "t5", "bart", "whisper", "vit", "swin",
    "clip_vision", "wav2vec2",
)  # fmt: skip
"""What is measured by default, chosen before anything was measured: text, decoders, pairs, vision and audio."""
IMPLS, TRACED = ("eager", "sdpa"), ("d18", "d23", "ts17")
MARKED = "fusion"
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


def machine() -> str:
    """Returns the machine and its software in words that name no owner."""
    cpu = platform.machine().replace("x86_64", "x86")
    return f"{os.cpu_count()}-core {cpu} CPU ({platform.system()}, Python {platform.python_version()})"


def main(words: list[str]) -> int:
    """Measures what is named, everything by default, and writes the JSON and the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"architectures (default: {' '.join(SAMPLE)})")
    parser.add_argument("--all", action="store_true", help="every architecture of the corpus")
    parser.add_argument("--impls", nargs="+", default=list(IMPLS))
    parser.add_argument("--routes", nargs="*", default=list(TRACED))
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "attnproof-corpus")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep what the JSON holds of other exports")
    parser.add_argument("--render", action="store_true", help="only write the pages from the JSON")
    args = parser.parse_args(words)
    if not args.render:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        held = json.loads(args.out.read_text()) if args.add else {"corpus": [], "command": ""}
        for results in measured(args, words, held):  # written as it grows: it takes an hour or more
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.out == RESULTS:
        results = json.loads(RESULTS.read_text())
        for page, text in ((PAGE, markdown(results)), (README, sentence(results))):
            marked.write(page, MARKED, text)
    else:
        print(markdown(json.loads(args.out.read_text())))
    return 0


def measured(args: argparse.Namespace, words: list[str], held: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields everything the tables are made of, each time with more in it.

    Args:
        args: What to measure.
        words: The command line that said so.
        held: What was measured before; what is measured again takes its place.
    """
    from corpus_pool import outcomes
    from corpus_registry import ENTRIES

    tools = tuple(args.tools)
    results = {
        "schema": 1,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "seed": SEED,
        "limits": {"export": fusion_tools.LIMIT, "unit": "process seconds"},
        "command": "; ".join([*filter(None, [held["command"]]), " ".join(["python benchmarks/fusion.py", *words])]),
        "tools": list(tools),
        "operators": sorted(f"{domain or 'ai.onnx'}::{op}" for domain, op in ATTENTION),
        "corpus": held["corpus"],
    }
    jobs = [
        (name, impl, tuple(args.routes), args.folder, tools)
        for name in (ENTRIES if args.all else args.names or SAMPLE if args.routes else ())
        for impl in ENTRIES[name].impls
        if impl in args.impls
    ]
    for rows in outcomes(compared, jobs, args.workers, lambda job: []):
        for row in rows:
            said = "  ".join(f"{t}: {s.right}/{s.fused}" for t, s in row.tools.items())
            print(f"{row.name:24} {row.impl:6}{row.route:5} {row.expected} blocks  {said}", file=sys.stderr, flush=True)
        results["corpus"] = merged(results["corpus"], [asdict(row) for row in rows], ("name", "impl", "route"))
        yield results


def merged(rows: list[dict[str, Any]], new: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns rows told apart by some keys, in their order; what is new takes the place of what was."""
    found = {tuple(row[k] for k in keys): row for row in [*rows, *new]}
    return [found[key] for key in sorted(found)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
