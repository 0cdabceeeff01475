"""The table of whole models in docs/measurements.md is that of the kept results, which are right and whole."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402
import model_speed  # noqa: E402


def test_the_page_is_that_of_the_results() -> None:
    page = model_speed.PAGE.read_text()
    table = model_speed.markdown(json.loads(model_speed.RESULTS.read_text()))
    assert page == marked.with_text(page, model_speed.MARKED, table)


def test_every_case_was_timed_and_every_answer_of_ours_is_right() -> None:
    documents = json.loads(model_speed.RESULTS.read_text())
    assert [document["cases"][0]["name"] for document in documents] == [case.name for case in model_speed.CASES]
    for document in documents:
        rows = document["cases"][0]["rows"]
        assert not [row for row in rows if row["kind"] == "attnproof" and row["status"] == "WRONG"]
        assert [row for row in rows if row["name"] == "attnproof" and row["status"] == "timed"]
