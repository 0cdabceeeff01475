"""A representative part of the decoders with a cache: `make corpus` runs all of them."""

from pathlib import Path

import onnx_ir as ir
import pytest
from corpus_caches import DECODERS, ROUTES, Way, build, export, judge, run
from run_caches import line, ways

from export.fuse import Options, fuse
from export.lower import for_ort_check, lower

SAMPLE = [
    Way("gemma3", "sdpa", "ts17"),
    Way("gpt2", "eager", "ts17", positions="mask"),
    Way("gpt_neox", "sdpa", "ts17", "one token"),
    Way("llama", "eager", "d18"),
    Way("mistral", "sdpa", "d23", "one token"),
]


@pytest.mark.parametrize("way", SAMPLE, ids=str)
def test_a_prompt_and_single_tokens_are_right_with_past_and_present(way: Way, tmp_path: Path) -> None:
    row = judge(way, tmp_path)
    assert row.ok and not row.failed, line(row)


def test_the_concatenation_that_tensorrt_gets_back_is_as_right(tmp_path: Path) -> None:
    way = Way("qwen3", "sdpa", "ts17")
    step = build(way)
    export(way, step, tmp_path / "step.onnx")
    lowered = lower(fuse(ir.load(tmp_path / "step.onnx"), Options(verify=False)).model, "tensorrt-rtx").model
    attentions = [n for n in lowered.graph if n.op_type == "Attention"]
    assert attentions and not any(v is not None for n in attentions for v in n.inputs[4:])
    assert not run(for_ort_check(lowered), step, way)


def test_every_decoder_goes_every_way() -> None:
    every = list(ways(list(DECODERS)))
    assert len(set(every)) == len(every) == len(DECODERS) * 2 * len(ROUTES) * 2 + 2 * 2 * len(ROUTES)
    assert {"llama", "gpt2", "gpt_neox", "mistral", "phi3", "qwen3", "gemma3"} <= set(DECODERS)


def test_the_judge_sees_a_past_of_the_wrong_kind_and_a_frozen_position(tmp_path: Path) -> None:
    way = Way("gpt2", "eager", "ts17")
    step = build(way)
    export(way, step, tmp_path / "step.onnx")
    fused = fuse(ir.load(tmp_path / "step.onnx"), Options(verify=False)).model
    assert not run(fused, step, way)
    swapped = fused.clone()
    node = next(n for n in swapped.graph if n.op_type == "Attention")
    node.replace_input_with(5, node.inputs[4])
    assert set(run(swapped, step, way)) == {"even", "one row", "ragged"}
    frozen = fused.clone()
    places = [n for n in frozen.graph if n.op_type == "Gather" and "wpe" in str(n.name)]
    assert places, [n.name for n in frozen.graph if n.op_type == "Gather"]
    start = places[0].inputs[1]
    assert start is not None
    zero = ir.node("Sub", [start, start])
    frozen.graph.insert_before(places[0], zero)
    places[0].replace_input_with(1, zero.outputs[0])
    assert run(frozen, step, way)
