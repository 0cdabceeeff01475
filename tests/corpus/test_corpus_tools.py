"""The corpus' own tools can tell right from wrong: what is counted as a block, and what the judge lets pass."""

from pathlib import Path

import corpus_judge
import onnx_ir as ir
import pytest
import torch
from corpus_count import count
from corpus_entry import SIZES, Entry
from corpus_exceptions import gap
from corpus_export import export
from corpus_judge import Row, judge
from corpus_module import build, draw
from corpus_registry import ENTRIES
from run_corpus import line, summary
from torch import nn

from export.fuse import FuseResult, Options, fuse
from export.parity import ParityCase
from export.parity.precision import precision
from export.parity.reference import Reference

X = torch.randn(2, 5, 16)
VIT = ENTRIES["vit"]


class Attention(nn.Module):
    """What a name says is done between Q, K and V."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(2, 5, 2, 8).transpose(1, 2)
        if self.kind == "sdpa":
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)
        if self.kind == "router":
            return self.linear(x).softmax(-1) * x
        if self.kind == "scores of a layer":
            return self.linear(x).softmax(-1) @ x.transpose(1, 2)
        scores = heads @ heads.transpose(-1, -2)
        if self.kind == "sink":
            scores = torch.cat([scores, scores[..., :1]], dim=-1)
            return scores.softmax(-1)[..., :-1] @ heads
        if self.kind == "unused":
            return scores.softmax(-1)
        weights = nn.functional.dropout(scores.masked_fill(scores > 9, -1e9).softmax(-1), 0.1, self.training)
        return torch.einsum("bhst,bhtd->bhsd", weights, heads)


@pytest.mark.parametrize(
    ("kind", "blocks", "others"),
    [
        ("by hand", 1, 0),
        ("sdpa", 1, 0),
        ("sink", 1, 0),
        ("router", 0, 1),
        ("scores of a layer", 0, 1),
        ("unused", 0, 1),
    ],
)
def test_blocks_are_softmaxes_between_two_products(kind: str, blocks: int, others: int) -> None:
    found = count(Attention(kind).eval(), (X,))
    assert (found.blocks, found.others) == (blocks, others)


def test_multi_head_attention_counts_once() -> None:
    module = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    assert count(module, (X, X, X)).blocks == 1


def test_peak_tells_uniform_from_spread() -> None:
    module = Attention("by hand").eval()
    assert count(module, (torch.zeros_like(X),)).peak == pytest.approx(1.0)
    assert count(module, (3 * X,)).peak > 2


def spoiled(model: ir.Model, options: Options) -> FuseResult:
    """Fuses, and then halves every scale."""
    result = fuse(model, options)
    for node in result.model.graph:
        if node.op_type == "Attention":
            node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].as_float() / 2)
    return result


def test_the_judge_finds_a_wrong_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_judge, "fuse", spoiled)
    (row,) = judge(VIT, "eager", ("ts17",), tmp_path)
    assert row.verdict == "WRONG" and set(row.wrong) == set(VIT.cases) and not row.right and gap(row)
    assert "outside their budget" in line(row)


def test_the_judge_finds_what_stays_and_what_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_judge, "fuse", lambda model, options: FuseResult(model, ()))
    (row,) = judge(VIT, "eager", ("ts17",), tmp_path)
    assert row.verdict == "kept" and row.expected == 2 and not row.right and gap(row)

    def broken(model: ir.Model, options: Options) -> FuseResult:
        raise RuntimeError("broken")

    monkeypatch.setattr(corpus_judge, "fuse", broken)
    (row,) = judge(VIT, "eager", ("ts17",), tmp_path)
    assert row.verdict == "crashed" and gap(row)
    assert summary([row]).startswith("fused-and-right 0 of 2 blocks")


def test_a_failed_export_is_a_row_with_the_exporters_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: object, **kwargs: object) -> None:
        raise RuntimeError("outer") from ValueError("operator 'x' is not supported")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", refuses)
        (row,) = judge(VIT, "eager", ("ts17",), tmp_path)
    assert row.verdict == "no export" and row.failed == "ValueError: operator 'x' is not supported" and not gap(row)
    assert export(VIT, "eager", "ts17", tmp_path).reason == row.failed, "a failure is kept like a file"


def test_an_export_that_is_wrong_is_the_exporters_fault(tmp_path: Path) -> None:
    made = export(VIT, "eager", "ts17", tmp_path)
    assert made.path is not None
    model = ir.load(made.path)
    weight = next(v for name, v in model.graph.initializers.items() if name.endswith("layernorm.weight"))
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name=weight.name)
    ir.save(model, made.path)
    (row,) = judge(VIT, "eager", ("ts17",), tmp_path)
    assert set(row.exporters_fault) == set(VIT.cases) and row.verdict == "ok" and row.right == 2
    assert set(row.fused.values()) == {corpus_judge.AS_EXPORTED}


def test_padding_is_on_the_right_then_absent_then_on_the_left() -> None:
    masks = [draw(ENTRIES["bert"], case)["attention_mask"] for case in range(3)]
    assert [tuple(m.shape) for m in masks] == list(zip(SIZES["batch"], SIZES["length"], strict=True))
    assert masks[0][0, -1] == 0 and masks[1].all() and masks[2][0, 0] == 0 and masks[2][:, -1].all()


def test_a_module_is_the_same_every_time() -> None:
    entry: Entry = ENTRIES["llama"]
    inputs = tuple(draw(entry, 0).values())
    assert torch.equal(build(entry, "eager")(*inputs), build(entry, "eager")(*inputs))


def test_no_implementation_is_no_row(tmp_path: Path) -> None:
    assert judge(ENTRIES["mpnet"], "sdpa", ("ts17",), tmp_path) == []


def test_rows_of_nothing_are_no_evidence() -> None:
    row = Row("x", "eager", "d18", expected=2, exported={"a": "bad"}, fused={"a": corpus_judge.NO_EVIDENCE})
    assert row.verdict == "exporter's" and not gap(row)


def test_a_module_that_names_float32_is_judged_by_its_own_answer_where_float64_overflows_that() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x + torch.tensor([torch.finfo(x.dtype).min] * 3, dtype=torch.float32), -1)

    case = ParityCase("a", {"x": torch.arange(6.0).reshape(2, 3)}, positional=True)
    assert corpus_judge._lost(Reference(Masked(), precision("fp32")).truth(case))
    assert not corpus_judge._lost(corpus_judge.InFloat32(Masked(), precision("fp32")).truth(case))
    assert not corpus_judge._lost(Reference(nn.Softmax(-1), precision("fp32")).truth(case))
