"""`python benchmarks/speed.py`: the table of speed in docs/measurements.md and two plots, made of the kept results.

The results are what `python -m export bench` wrote with `-o benchmarks/results/speed-NAME.json`, one file or several of
one machine and the same versions.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import marked  # noqa: E402

from export.report import bench_plot, bench_table  # noqa: E402
from export.report.bench_summary import joined  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "measurements.md"
MARKED = "speed"


def document() -> dict[str, Any]:
    """Returns the kept results as one document."""
    return joined([json.loads(path.read_text()) for path in sorted(RESULTS.glob("speed-*.json"))])


def block(kept: dict[str, Any]) -> str:
    """Returns what stands between the page's markers."""
    plots = "".join(f"\n![{alt}](../benchmarks/results/{name})\n" for name, alt in bench_plot.NAMES.items())
    return f"{bench_table.markdown(kept)}\n{plots}"


def main() -> int:
    """Writes the plots and the page."""
    kept = document()
    bench_plot.write(kept, RESULTS)
    marked.write(PAGE, MARKED, block(kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
