"""The table of features and targets is true of this code: its graphs are those that were proved, and some are again."""

import json
from pathlib import Path

import lowering_graphs as g
import onnx_ir as ir
import pytest
import target_proof
import targets_table
from target_feature import Feature
from target_features import FEATURES

from export import model_file
from export.lower import lower

TABLE = targets_table.stored()
AGAIN = (
    "fp64, bool mask", "scale negative", "one head, bool mask", "head size 264", "V 24 beside Q 16, grouped",
    "3-D form, softcap, float mask", "float mask [4,1,T]", "fp32 mask beside fp16 Q", "mask of 0 and finfo.min, causal",
    "past and present, causal, bool mask", "scores, mode 2, bool mask", "nonpad_kv_seqlen, causal",
    "two attentions on one Q", "RotaryEmbedding, 3-D, partial, tables by batch", "function named Attention",
    "com.microsoft MultiHeadAttention, padding mask", "plugin node", "attention in a branch of If",
)  # fmt: skip
OUTCOMES = {"native", "lowered", "plugin", "decomposed", "refused", "passed on"}


def test_every_cell_was_proved_on_the_graph_that_lowering_makes_now() -> None:
    """Otherwise run `python tests/lower/targets_table.py`."""
    assert list(TABLE) == list(FEATURES)
    stale = [
        f"{name} on {column}"
        for name, feature in FEATURES.items()
        for column in target_proof.COLUMNS
        if TABLE[name][column]["digest"] != target_proof.digest(target_proof.lowered(feature, column))
    ]
    assert stale == []


def test_no_cell_is_wrong_or_unknown() -> None:
    for name, cells in TABLE.items():
        for column, cell in cells.items():
            assert cell["outcome"] in OUTCOMES, (name, column, cell)
            if cell["outcome"] == "refused":
                assert "'" in cell["sentence"], cell  # it names the node
                continue
            assert cell["numbers"], (name, column)
            if column == "tensorrt-rtx":
                assert cell["engine"] in ("fused", "decomposed", "builds"), (name, cell)
                assert cell["engine"] != "decomposed" or cell["why"]
            elif column.startswith("tensorrt"):
                assert cell["engine"] == "NOT RUN"


def test_the_page_shows_the_table() -> None:
    assert targets_table.PAGE.read_text() == targets_table.page(TABLE)


@pytest.mark.parametrize("name", AGAIN)
def test_some_rows_are_proved_again(name: str, tmp_path: Path) -> None:
    for column in target_proof.COLUMNS:
        made = target_proof.cell(FEATURES[name], column, tmp_path)
        shown = TABLE[name][column]
        assert {**made, "numbers": None} == {**json.loads(json.dumps(shown)), "numbers": None}, column


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("causal, bool mask [B,1,S,T]", "a mask beside is_causal"),
        ("nonpad_kv_seqlen", "nonpad_kv_seqlen"),
        ("window to both sides", "a window"),
        ("past and present", "a past"),
        ("scores nobody reads", "a second output"),
        ("scale negative", "a scale that is not positive"),
        ("float mask [S,T]", "a mask without four axes"),
    ],
)
def test_what_the_importer_drops_is_seen_before_it_is_lowered(name: str, said: str) -> None:
    assert any(said in found for found in target_proof.dropped(FEATURES[name].make()))


def test_a_wrong_lowering_is_seen_in_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_mask(model: ir.Model, *words: str):
        made = lower(model, *words)
        for node in made.model.graph:
            if node.op_type == "Attention":
                node.replace_input_with(3, None)
        return made

    monkeypatch.setattr(target_proof, "lower", forgets_the_mask)
    cell = target_proof.cell(FEATURES["float mask [B,1,S,T]"], "ort", tmp_path)
    assert cell["outcome"] == "WRONG"


def test_a_graph_that_is_not_the_truth_is_seen(tmp_path: Path) -> None:
    other = Feature("other", "", lambda: g.attention("", "is_causal: int = 1"), lambda: g.attention())
    assert target_proof.cell(other, "ort", tmp_path)["outcome"] == "WRONG"


def test_a_rule_that_the_parser_dropped_is_seen(tmp_path: Path) -> None:
    causal, plain = (g.attention("", a, dtype="float16") for a in ("is_causal: int = 1", ""))
    path = tmp_path / "model.onnx"
    model_file.save(plain, path)
    assert target_proof.parsed_otherwise(path, plain) == []
    assert target_proof.parsed_otherwise(path, causal) == ["attn is NONE in the network"]
