"""Whole models through `build`: each attention of examples/ is one fused kernel, as docs/measurements.md shows."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import large_model  # noqa: E402
import marked  # noqa: E402
import whole_models  # noqa: E402

from engines.vendor import NAMES, load  # noqa: E402

SHOWN = json.loads(whole_models.RESULTS.read_text())
KINDS = {"BERT-like": ("padding", "none", [12, 12]), "LLaMA-like": ("causal", "qk", [12, 4])}


def test_the_table_is_that_of_the_json() -> None:
    text = whole_models.PAGE.read_text()
    assert text == marked.with_text(text, whole_models.MARKED, whole_models.markdown(SHOWN))


def test_the_sentence_on_the_large_model_is_that_of_its_json() -> None:
    text, results = large_model.PAGE.read_text(), json.loads(large_model.RESULTS.read_text())
    assert text == marked.with_text(text, large_model.MARKED, large_model.markdown(results))
    assert results["row"]["passed"] and results["row"]["size"] > 2**31 - 1
    (engine,) = results["row"]["engines"]
    assert all(kernels and len(kernels) == 1 for kernels in engine["kernels"].values())


@pytest.mark.parametrize("shown", SHOWN["rows"], ids=lambda row: row["model"])
def test_every_attention_of_the_table_is_one_kernel_of_its_own(shown: whole_models.Row) -> None:
    assert shown["passed"] and {"pytorch", "exported", "fused", "lowered"} <= set(shown["stages"])
    assert [engine["sm"] for engine in shown["engines"]] == list(whole_models.SMS)
    check(shown, layers=12)


@pytest.mark.parametrize("name", whole_models.MODELS)
def test_two_layers_of_it_built_here(name: str, tmp_path: Path) -> None:
    assert "tensorrt-rtx" in NAMES and load("tensorrt-rtx")
    source = f"{ROOT / whole_models.MODELS[name]}_small"
    made = whole_models.built(name, source, (89,), {"batch": "1:1:2", "length": "1:16:32"}, "fp16", tmp_path)
    assert made["passed"]
    check(made, layers=2)
    (engine,) = json.loads((tmp_path / name / "layers.json").read_text())["engines"]
    blocks = {k: a["block"] for a in engine["attentions"].values() for k in a["kernels"]}
    launched = [layer["name"] for layer in engine["layers"] if layer["name"] in blocks]
    assert [blocks[name] for name in launched] == ["layers.0.attention", "layers.1.attention"]


def check(row: whole_models.Row, layers: int) -> None:
    """Asserts that each block of the model has one kernel in each engine, and that costs are reported."""
    mask, rope, heads = KINDS[row["model"]]
    assert [a["block"] for a in row["attentions"]] == [f"layers.{i}.attention" for i in range(layers)]
    assert [(a["mask"], a["rope"], a["heads"]) for a in row["attentions"]] == [(mask, rope, heads)] * layers
    for engine in row["engines"]:
        kernels = [engine["kernels"][a["name"]] for a in row["attentions"]]
        assert all(made is not None and len(made) == 1 for made in kernels), engine
        assert len({made[0] for made in kernels}) == layers
        assert engine["seconds"] > 0 and engine["size"] > 100_000 and engine["scratch"] > 0
        assert engine["memory"] > engine["size"]
    assert row["seconds"] > sum(e["seconds"] for e in row["engines"]) / 2 and row["memory"] > 2**27
