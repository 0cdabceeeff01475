"""The side-by-side tables are those of the benchmark's JSON, and the benchmark's tools do what they say."""

import json
import sys
from pathlib import Path

import pytest
from corpus_export import export
from corpus_registry import ENTRIES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import fusion  # noqa: E402
import fusion_passes  # noqa: E402
import marked  # noqa: E402
from fusion_tools import TOOLS, Made, measured  # noqa: E402


def test_the_tables_are_those_of_the_json() -> None:
    results = json.loads(fusion.RESULTS.read_text())
    for page, shown in ((fusion.PAGE, fusion.markdown(results)), (fusion.README, fusion.sentence(results))):
        text = page.read_text()
        assert shown in text
        assert text == marked.with_text(text, fusion.MARKED, shown)
    assert {"date", "machine", "versions", "seed", "command", "limits"} <= set(results)


@pytest.mark.parametrize(("tool", "blocks"), [("attnproof", 2), ("onnxscript ort_fusions", 0)])
def test_a_tool_says_how_many_operators_it_left(tool: str, blocks: int, tmp_path: Path) -> None:
    path = export(ENTRIES["vit"], "eager", "ts17", tmp_path).path
    assert path is not None
    (made,) = TOOLS[tool](path)
    assert made.model and (made.blocks, made.said) == (blocks, "") and made.seconds > 0


def test_a_tool_that_takes_too_long_is_stopped_though_it_catches_exceptions() -> None:
    def long() -> None:
        for _ in range(200_000):
            try:
                sum(range(1000))
            except Exception:
                continue

    made = measured(long, 0.05, "a type")
    assert (made.model, made.said, made.how) == (None, "not done after 0.05 s", "a type")
    assert 0.04 < made.seconds < 1


def test_the_time_of_a_pass_is_told_or_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(ENTRIES["vit"], "eager", "ts17", tmp_path).path
    assert path is not None
    found = fusion_passes.pass_time("attnproof", path)
    assert found["blocks"] == 2 and found["seconds"] > 0 and found["nodes"] > 100

    def broken() -> None:
        raise ValueError("no")

    monkeypatch.setitem(fusion_passes.PASSES, "attnproof", lambda path: broken)
    failed = fusion_passes.pass_time("attnproof", path)
    assert failed == {**found, "seconds": None, "blocks": 0, "said": "ValueError: no"}


def test_what_is_measured_again_takes_the_place_of_what_was() -> None:
    rows = fusion.merged([{"k": 2, "v": 1}, {"k": 1, "v": 1}], [{"k": 2, "v": 3}], ("k",))
    assert rows == [{"k": 1, "v": 1}, {"k": 2, "v": 3}]


def test_wrong_blocks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import corpus_judge

    monkeypatch.setattr(corpus_judge.Bench, "compare", lambda self, before, after: ({"a": "ok"}, {"a": "far off"}))
    monkeypatch.setitem(TOOLS, "attnproof", lambda path: iter([Made(b"", 2, 1.0)]))
    (row,) = fusion.compared(("vit", "eager", ("ts17",), tmp_path, ("attnproof",)))
    scored = row.tools["attnproof"]
    assert (scored.fused, scored.right, scored.wrong, scored.said) == (2, 0, 2, "far off")
