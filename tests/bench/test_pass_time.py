"""The table of the pass' time is that of the kept results, and they are linear."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402
import pass_time  # noqa: E402

KEPT = json.loads(pass_time.RESULTS.read_text())


def test_the_table_is_that_of_the_json() -> None:
    page = pass_time.PAGE.read_text()
    assert page == marked.with_text(page, pass_time.MARKED, pass_time.markdown(KEPT))
    assert {"date", "machine", "versions", "seed", "command", "limits"} <= set(KEPT)


def test_the_lines_are_those_of_the_rows_and_ours_are_straight() -> None:
    for kept, fitted in zip(KEPT["fits"], pass_time.fits(KEPT["rows"]), strict=True):
        assert kept == pytest.approx(fitted)
    ours = [fit for fit in KEPT["fits"] if fit["tool"] == pass_time.OURS]
    routes = {row["route"] for row in KEPT["rows"]}
    assert {(fit["route"], fit["of"]) for fit in ours} == {
        (route, of) for route in routes for of in ("seconds", "verification", "memory")
    }
    for fit in ours:
        assert fit["exponent"] < 1.2, fit
        assert fit["r2"] > 0.98 or fit["points"] < 5, fit  # of three small graphs the noise is most
    assert max(row["nodes"] for row in KEPT["rows"] if row["seconds"] is not None) >= 100_000


def test_a_line_tells_linear_growth_from_the_square() -> None:
    line = pass_time.line([(10, 25.0), (20, 45.0), (40, 85.0)])
    assert (line["slope"], line["intercept"], line["r2"]) == pytest.approx((2.0, 5.0, 1.0))
    assert pass_time.line([(10, 100.0), (20, 400.0), (40, 1600.0)])["exponent"] == pytest.approx(2.0)


def test_text_goes_between_markers_and_nowhere_else() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: end -->\n"
    assert marked.with_text(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no <!-- y: begin -->"):
        marked.with_text(page, "y", "new\n")
