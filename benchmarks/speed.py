"""`python benchmarks/speed.py`: the tables of speed in README.md and docs/measurements.md, and two plots.

They are made of what `python -m export bench` wrote with `-o benchmarks/results/speed-NAME.json`, one file or several
of one machine and the same versions.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import marked  # noqa: E402

from export.report import bench_plot, bench_summary, bench_table  # noqa: E402
from export.report.bench_summary import joined  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PAGE, README = ROOT / "docs" / "measurements.md", ROOT / "README.md"
MARKED = "speed"


def document() -> dict[str, Any]:
    """Returns the kept results as one document."""
    return joined([json.loads(path.read_text()) for path in sorted(RESULTS.glob("speed-*.json"))])


def block(kept: dict[str, Any]) -> str:
    """Returns what stands between the page's markers."""
    return f"{bench_table.markdown(kept)}\n{_plots('../')}"


def short(kept: dict[str, Any]) -> str:
    """Returns what stands between the README's markers: a line for each case, how it was measured, the plots."""
    heads = ("case", "attnproof", "best by hand", "best tool", "PyTorch")
    found = [(line.case["name"], *map(bench_table.speedup, (line.ours, line.hand, line.tool, line.torch))) for line in
             bench_summary.lines(kept)]  # fmt: skip
    versions = kept["versions"]
    said = ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime-gpu", "torch", "onnxscript"))
    how = f"Measured {kept['date']} on a {kept['machine']}, {kept['pinning']}, by `{kept['command']}` with {said}."
    return "\n".join([*marked.table(heads, found), "", how, _plots("")])


def _plots(to: str) -> str:
    return "".join(f"\n![{alt}]({to}benchmarks/results/{name})\n" for name, alt in bench_plot.NAMES.items())


def main() -> int:
    """Writes the plots and both pages."""
    kept = document()
    bench_plot.write(kept, RESULTS)
    marked.write(PAGE, MARKED, block(kept))
    marked.write(README, MARKED, short(kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
