"""`python benchmarks/large_model.py`: a model of more than 2 GB, with external data, through `build` to an engine.

examples/llama_like.py with hidden size 1536 and 29 layers (1.1 billion random weights), exported in fp16 by PyTorch's
own exporter, is fused, lowered, built for one SM and judged. `--layers` makes it smaller. Its row goes to
benchmarks/results/large_model.json, and a line of docs/measurements.md is made of that.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import marked

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "large_model.json"
PAGE = ROOT / "docs" / "measurements.md"
MARKED = "large model"
HIDDEN, FEED_FORWARD, LAYERS, SM = 1536, 6144, 29, 89
SHAPES = {"batch": "1:1:1", "length": "1:8:8"}


def written(path: Path, layers: int) -> int:
    """Exports the model to `path`, in a process whose memory then is free again; returns the bytes of its data."""
    subprocess.run([sys.executable, __file__, "--export", str(path), "--layers", str(layers)], check=True)
    return sum(file.stat().st_size for file in path.parent.iterdir())


def exported(path: Path, layers: int) -> None:
    """Exports the model to `path` with its weights beside it, in fp16 from the start."""
    import torch

    sys.path.insert(0, str(ROOT / "examples"))
    import llama_like

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    model, inputs, shapes = llama_like.make(layers, HIDDEN, FEED_FORWARD)
    made = torch.onnx.export(model, kwargs=inputs, dynamic_shapes=shapes, dynamo=True, opset_version=18, verbose=False)
    made.save(path, external_data=True)


def main(words: list[str]) -> int:
    """Exports, builds, and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    args = parser.parse_args(words)
    if args.export:
        exported(args.export, args.layers)
        return 0
    import whole_models

    import export

    if not args.render:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "large", "model.onnx")
            path.parent.mkdir()
            size = written(path, args.layers)
            report = export.build(
                str(path), out=f"{place}/out", target="tensorrt-rtx", sm=(SM,), shapes=SHAPES, force=True, cache=False
            )
            row = whole_models.row("LLaMA-like", report) | {"size": size, "layers": args.layers, "truth": report.truth}
        results = {
            "schema": 1,
            "date": date.today().isoformat(),
            "machine": f"{os.cpu_count()}-core {platform.machine().replace('x86_64', 'x86')} CPU",
            "versions": {package: version(package) for package in whole_models.PACKAGES},
            "seed": 0,
            "command": " ".join(["python benchmarks/large_model.py", *words]),
            "row": row | {"source": "exported from examples/llama_like.py"},
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    marked.write(PAGE, MARKED, markdown(json.loads(RESULTS.read_text())))
    return 0


def markdown(results: dict[str, Any]) -> str:
    """Returns the page's sentence."""
    from export.report.terminal import byte_size

    row = results["row"]
    (engine,) = row["engines"]
    fused = sum(kernels is not None and len(kernels) == 1 for kernels in engine["kernels"].values())
    return (
        f"A model of {byte_size(row['size'])} (the decoder with hidden size {HIDDEN} and {row['layers']} layers, "
        f"{row['dtype']}, weights as external data): {fused} of {len(row['attentions'])} attentions in a fused kernel "
        f"for SM {engine['sm']}, {row['seconds']:.0f} s for everything, built in {engine['seconds']:.0f} s, at most "
        f"{byte_size(row['memory'])} of memory in the process and {byte_size(engine['memory'])} in the builder's.\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
