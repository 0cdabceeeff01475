"""The table of speed in docs/measurements.md and its plots are those of the kept results."""

import copy
import sys
from pathlib import Path

import pytest

from export.errors import UsageError
from export.report import bench_plot, bench_summary

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402
import speed  # noqa: E402


def test_the_page_and_the_plots_are_those_of_the_results() -> None:
    kept = speed.document()
    page = speed.PAGE.read_text()
    assert page == marked.with_text(page, speed.MARKED, speed.block(kept))
    readme = speed.README.read_text()
    assert readme == marked.with_text(readme, speed.MARKED, speed.short(kept))
    assert (speed.RESULTS / "speedup.svg").read_text() == bench_plot.speedup(kept)
    assert (speed.RESULTS / "roofline.svg").read_text() == bench_plot.roofline(kept)


def test_the_kept_results_are_the_eight_cases_and_right() -> None:
    from export.bench.shapes import SETS

    lines = bench_summary.lines(speed.document())
    assert {line.case["name"] for line in lines} == {shape.name for shape in SETS["cpu"] + SETS["lengths"]}
    assert not [row for line in lines for row in line.case["rows"] if row["status"] == "WRONG"]


def test_results_of_different_versions_are_not_joined() -> None:
    kept = speed.document()
    other = copy.deepcopy(kept)
    other["versions"]["torch"] = "1.0"
    with pytest.raises(UsageError, match="differ in versions"):
        bench_summary.joined([kept, other])
