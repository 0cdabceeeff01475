"""Caches: every golden at an empty past, what the report says, what each target is given."""

from pathlib import Path

import onnx_ir as ir
import pytest
from derived import FP32, truth
from onnx.reference import ReferenceEvaluator
from text_graphs import SIZES, assert_same, draw, expressions, parse, read_goldens

from export.fuse import Options, fuse
from export.fuse.rows import as_json
from export.lower import lower
from export.parity.compare import compare

CACHES = {g.name: g for g in read_goldens((Path(__file__).parent / "goldens" / "cache.txt").read_text())}
ALL_KEYS = "the past is all keys there are"
PRESENT = "past and present, outputs of the graph"

FIRST = tuple({**sizes, "P": 0, "L": sizes["S"], "W": sizes["S"]} for sizes in SIZES)
"""The first call: nothing is cached yet."""


@pytest.mark.parametrize("name", [n for n in CACHES if n != ALL_KEYS])
def test_an_empty_past_means_the_same(name: str) -> None:
    before = parse(CACHES[name].before)
    assert_same(before, fuse(before).model, FIRST)


@pytest.mark.parametrize("name", CACHES)
def test_fusing_again_changes_nothing(name: str) -> None:
    once = fuse(parse(CACHES[name].before)).model
    assert expressions(fuse(once).model.graph) == expressions(once.graph)


def test_the_row_says_whether_a_cache_was_absorbed() -> None:
    for name, want in ((PRESENT, "past"), (ALL_KEYS, "none")):
        (row,) = as_json(fuse(parse(CACHES[name].before)).attentions)["attentions"]
        assert row["cache"] == want


def test_an_attention_that_came_so_gets_its_cache_and_is_checked() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (float[B,4,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[B,2,P,8] pk, float[B,2,P,8] pv)
      => (float[B,4,S,8] y, float[B,2,L,8] ok, float[B,2,L,8] ov) {
      ok = Concat<axis = -2>(pk, k)
      ov = Concat<axis = -2>(pv, v)
      y = Attention%s(q, ok, ov)
    }"""
    before = parse(text % "")
    result = fuse(before)
    (row,) = result.attentions
    assert (row.status, row.code, row.cache) == ("already", "A002", "past")
    assert row.verify is not None and row.verify.cases >= 3
    assert [n.op_type for n in result.model.graph] == ["Attention"]
    assert_same(before, result.model, (*SIZES, *FIRST))
    # causal and windows count from the first key: with a past they would count from the past's end
    (row,) = fuse(parse(text % "<is_causal = 1>"), Options(verify=False)).attentions
    assert row.cache == "none"
    (row,) = fuse(parse(text % ""), Options(verify=False)).attentions
    assert row.cache == "past"


def test_a_mask_of_one_column_for_all_keys_is_not_given_a_past() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (float[B,4,S,8] q, float[B,4,S,8] k, float[B,4,S,8] v, float[B,4,P,8] pk, float[B,4,P,8] pv, float[B,1,S,1] m)
      => (float[B,4,S,8] y) {
      ok = Concat<axis = 2>(pk, k)
      ov = Concat<axis = 2>(pv, v)
      y = Attention(q, ok, ov, m)
    }"""
    (row,) = fuse(parse(text), Options(verify=False)).attentions
    assert row.cache == "none"


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_targets_without_a_past_get_the_concatenation_back(target: str) -> None:
    lowered = lower(fuse(parse(CACHES[PRESENT].before)).model, target)
    assert sorted(n.op_type for n in lowered.model.graph) == ["Attention", "Concat", "Concat", "Identity", "Identity"]
    assert any(step.action == "cache outside" for step in lowered.steps)


@pytest.mark.parametrize("name", [PRESENT, "a mask over past and new keys", "one head of keys and values"])
def test_the_canonical_graph_is_right_on_the_reference_evaluator(name: str) -> None:
    before = parse(CACHES[name].before)
    evaluator = ReferenceEvaluator(ir.to_proto(fuse(before).model))
    for sizes in (*SIZES, *FIRST):
        feeds = draw(before, sizes)
        for want, have in zip(truth(before, feeds), evaluator.run(None, feeds), strict=True):
            verdict = compare(have, want, FP32)
            assert verdict.ok, (sizes, verdict)


def test_onnx_runtime_gets_present_outputs_that_nobody_reads() -> None:
    fused = fuse(parse(CACHES["no present: ONNX says no more than what was there"].before)).model
    assert len(_attention(fused).outputs) == 1
    lowered = lower(fused, "ort")
    assert [bool(v.name) for v in _attention(lowered.model).outputs] == [True, True, True]
    assert [step.action for step in lowered.steps] == ["add present outputs"]
    assert not lower(lowered.model, "ort").steps


def _attention(model: ir.Model) -> ir.Node:
    (node,) = (n for n in model.graph if n.op_type == "Attention")
    return node


@pytest.mark.parametrize("length", ["L", "P + S"])
def test_a_mask_as_long_as_past_and_new_keys_is_handed_over_as_it_is(length: str) -> None:
    before = CACHES["a mask over past and new keys"].before
    model = parse(before)
    model.graph.inputs[-1].shape = ir.Shape(["B", 1, "S", length])
    if length != "L":
        for output in model.graph.outputs[1:]:
            output.shape = ir.Shape(["B", 4, length, 8])
    fused = fuse(model, Options(verify=False)).model
    assert fuse(model, Options(verify=False)).attentions[0].cache == "past"
    assert not any(step.action == "expand mask" for step in lower(fused, "ort").steps)
    short = fused.clone()
    mask = next(v for v in short.graph.inputs if v.name == "mask")
    mask.shape = ir.Shape(["B", 1, "S", "other"])
    assert any(step.action == "expand mask" for step in lower(short, "ort").steps)
