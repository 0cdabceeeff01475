"""The README's side-by-side tables are those of the benchmark's JSON, and the benchmark's tools do what they say."""

import json
import sys
from pathlib import Path

import pytest
from corpus_export import export
from corpus_registry import ENTRIES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import fusion  # noqa: E402
from fusion_tools import TOOLS  # noqa: E402


def test_the_tables_are_those_of_the_json() -> None:
    results = json.loads(fusion.RESULTS.read_text())
    readme = (ROOT / "README.md").read_text()
    assert readme == fusion.with_table(readme, fusion.markdown(results))
    assert {"date", "machine", "versions", "seed", "command"} <= set(results)


@pytest.mark.parametrize(("tool", "blocks"), [("attnproof", 2), ("onnxscript ort_fusions", 0)])
def test_a_tool_says_how_many_operators_it_left(tool: str, blocks: int, tmp_path: Path) -> None:
    path = export(ENTRIES["vit"], "eager", "ts17", tmp_path).path
    assert path is not None
    (made,) = TOOLS[tool](path)
    assert made.model and (made.blocks, made.said) == (blocks, "") and made.seconds > 0


def test_wrong_blocks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import corpus_judge

    monkeypatch.setattr(corpus_judge.Bench, "compare", lambda self, before, after: ({"a": "ok"}, {"a": "far off"}))
    monkeypatch.setitem(TOOLS, "attnproof", lambda path: iter([fusion.Made(b"", 2, 1.0)]))
    (row,) = fusion.compared(("vit", "eager", ("ts17",), tmp_path, ("attnproof",)))
    scored = row.tools["attnproof"]
    assert (scored.fused, scored.right, scored.wrong, scored.said) == (2, 0, 2, "far off")
