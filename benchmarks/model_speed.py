"""`python benchmarks/model_speed.py`: whole models of transformers and decode steps, before fusing and after, by tool.

Each model has 12 layers of hidden size 768 and random weights, is exported by PyTorch's own exporters, and the file is
given to `python -m export bench`: as it is, fused by this project, by onnxscript and by ONNX Runtime's optimizer, all
timed in turn on ONNX Runtime's CPU provider and their answers checked. A decode step takes one token, the padding mask
and the keys and values of every layer, and gives the longer ones back. The results go to
benchmarks/results/model_speed.json; a table of docs/measurements.md is made of them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import marked

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "corpus")]
RESULTS = Path(__file__).parent / "results" / "model_speed.json"
PAGE = ROOT / "docs" / "measurements.md"
MARKED = "model speed"

LAYERS, THREADS = 12, 2
OFF = "SkipLayerNormFusion"
SIZED: Mapping[str, Any] = MappingProxyType(
    {"hidden_size": 768, "num_hidden_layers": LAYERS, "num_attention_heads": 12, "max_position_embeddings": 4096}
)
BERT: Mapping[str, Any] = MappingProxyType({**SIZED, "intermediate_size": 3072, "vocab_size": 30522})
LLAMA: Mapping[str, Any] = MappingProxyType(
    {**SIZED, "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 32000}
)


@dataclass(frozen=True)
class Timed:
    """A model at one size.

    Attributes:
        model: "bert", "llama", or "step": llama, one token at a time.
        impl: Implementation of attention in transformers.
        route: As in the corpus: "ts17", "d23".
        sizes: Of the graph's symbolic dimensions.
    """

    model: str
    impl: str
    route: str
    sizes: Mapping[str, int]

    @property
    def name(self) -> str:
        """What the table calls it."""
        words = {"bert": "BERT", "llama": "LLaMA", "step": "LLaMA, decode step"}
        return f"{words[self.model]}: " + " ".join(f"{n} {s}" for n, s in self.sizes.items() if n in _SHOWN)


_SHOWN = ("batch", "length", "past")
_WHOLE = tuple({"batch": batch, "length": length} for batch, length in ((1, 128), (1, 512), (8, 128)))
_STEPS = tuple({"batch": b, "past": p, "new": 1, "total": p + 1} for b, p in ((1, 512), (1, 2048), (8, 512)))
CASES = (
    *(Timed("bert", "eager", "ts17", sizes) for sizes in _WHOLE),
    *(Timed("llama", "eager", "d23", sizes) for sizes in _WHOLE),
    *(Timed("step", "sdpa", "ts17", sizes) for sizes in _STEPS),
)
WAYS = {
    "ts17": "TorchScript, opset 17",
    "d23": "dynamo, opset 23",
}


def file(case: Timed, folder: Path) -> Path:
    """Returns the model's plain export, made once."""
    import corpus_caches
    import corpus_export
    from corpus_registry import ENTRIES

    if case.model != "step":
        settings = {"bert": BERT, "llama": LLAMA}[case.model]
        entry = ENTRIES[case.model]
        entry = replace(entry, name=f"{entry.name}-{LAYERS}x768", settings={**entry.settings, **settings})
        made = corpus_export.export(entry, case.impl, case.route, folder)
        if made.path is None:
            raise RuntimeError(f"{case.name} was not exported: {made}")
        return made.path
    path = folder / f"step.{case.impl}.{case.route}.onnx"
    if not path.exists():
        decoders = {**corpus_caches.DECODERS, "step": ("LlamaConfig", "LlamaForCausalLM", LLAMA)}
        corpus_caches.DECODERS = decoders
        way = corpus_caches.Way("step", case.impl, case.route)
        corpus_caches.export(way, corpus_caches.build(way), path)
    return path


def measured(case: Timed, folder: Path, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Returns what `bench` says of a case, as its JSON."""
    from export.bench.run import Asked, run

    asked = Asked(
        source=str(file(case, folder)),
        command="python benchmarks/model_speed.py",
        routes=(),
        sizes=dict(case.sizes),
        threads=THREADS,
        seconds=seconds,
        seed=0,
        verify=True,
        flex=False,
        device=device,
    )
    found = run(asked)
    named = replace(found, cases=tuple(replace(one, name=case.name) for one in found.cases))
    return {"exported": f"{case.impl}, {WAYS[case.route]}", **named.as_json()}


def markdown(documents: list[dict[str, Any]]) -> str:
    """Returns the table, and below it how its numbers were had."""
    from export.report import bench_table
    from export.report.bench_summary import lines

    head = ["model", "exported by", "as exported", "exported, SLN fusion off", "attnproof", "attnproof, SLN fusion off"]
    head += ["onnxscript", "ORT optimizer", "attnproof's error/budget"]
    rows = []
    for document in documents:
        for line in lines(document):
            if line.ours is None and line.export is None:
                ran = next(r for r in line.case["rows"] if r["name"] == "attnproof")
                cells = [line.case["name"], document["exported"], "does not run", "-"]
                cells += [f"**{ran['timing']['p50_ms']:.3g} ms**", "-", "-", "-", f"{ran['budget_used']:.2f}"]
                rows.append(cells)
                continue
            if line.export is None or line.ours is None:
                raise ValueError(f"{line.case['name']}: the export or ours was not timed, and only one of them")
            rest = {r["name"]: bench_table.speedup(r) for r in line.case["rows"] if r["timing"]}
            cells = [
                line.case["name"],
                document["exported"],
                f"{line.export['timing']['p50_ms']:.3g} ms ±{100 * line.export['timing']['spread'] / 2:.0f}%",
                rest.get(f"as exported, no {OFF}", "-"),
                f"**{bench_table.speedup(line.ours)}**",
                rest.get(f"attnproof, no {OFF}", "-"),
                *(rest.get(name, "-") for name in ("onnxscript ort_fusions", "ONNX Runtime optimizer")),
                f"{line.ours['budget_used']:.2f}",
            ]
            rows.append(cells)
    last = documents[-1]
    said = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    found = [
        *marked.table(head, rows),
        "",
        "Speed-up over the graph as exported, the median of interleaved rounds ± half their interquartile range; fp32. "
        f"Measured {last['date']} on a {last['machine']}, {last['pinning']}, by `{last['command']}` with {said}.",
    ]
    return "\n".join(found) + "\n"


def main(words: list[str]) -> int:
    """Times the cases whose names hold a word (all by default) and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only cases whose name holds it; others keep rows")
    parser.add_argument("--seconds", type=float, default=12.0, help="about how long each case is timed")
    parser.add_argument("--folder", type=Path, help="where exports are kept (default: a temporary folder)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: NAME-cuda.json, and no page")
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    args = parser.parse_args(words)
    chosen = [case for case in CASES if not args.words or any(word in case.name for word in args.words)]
    if not chosen:
        parser.error(f"no case's name holds {args.words}; there are {', '.join(case.name for case in CASES)}")
    if not args.render:
        from export.bench import settings

        settings.sleep_while_waiting(THREADS)  # before PyTorch, which exports, is imported
        results = RESULTS if args.device == "cpu" else RESULTS.with_name("model_speed-cuda.json")
        kept = {d["cases"][0]["name"]: d for d in json.loads(results.read_text())} if results.exists() else {}
        with tempfile.TemporaryDirectory(prefix="attnproof-models-") as place:
            folder = args.folder or Path(place)
            folder.mkdir(parents=True, exist_ok=True)
            for case in chosen:
                print(case.name, file=sys.stderr, flush=True)
                kept[case.name] = measured(case, folder, args.seconds, args.device)
                found = [kept[one.name] for one in CASES if one.name in kept]
                results.write_text(json.dumps(found, indent=1) + "\n")
    if args.device == "cuda":
        return 0
    marked.write(PAGE, MARKED, markdown(json.loads(RESULTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
