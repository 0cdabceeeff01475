"""Prefill and single steps give what one forward gives: every padding, to the end of the cache; and mutants do not."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from decoders import Graphs, changed, decoder, growing, judged, static

from export.parity.result import NOT_RUN, OK, ParityRow

CASES = ["steps", "left-padding", "right-padding", "ragged", "cache-full"]


def told(rows: list[ParityRow]) -> str:
    return "\n".join(f"{row.case}: {row.status} {row.ratio} {row.reason}" for row in rows)


@pytest.mark.parametrize(
    ("form", "dtype", "exporter"),
    [
        ("mha-rope-causal", "fp16", "dynamo"),
        ("llama-gqa-sdpa", "fp32", "dynamo"),
        ("gpt-causal", "fp32", "torchscript"),
        ("flash-packed", "fp32", "dynamo"),
    ],
)
@pytest.mark.parametrize("made", [growing, static])
def test_prefill_and_steps_give_one_forward(made: Callable[..., Graphs], form: str, dtype: str, exporter: str) -> None:
    of = decoder(form, dtype, exporter)
    graphs = made(of)
    rows = judged(of, graphs)
    assert [row.case for row in rows] == CASES
    hides = graphs.decoding.kind == "static" or graphs.decoding.mask is not None
    for row in rows:
        padded = row.case not in ("steps", "cache-full")
        assert row.status == (OK if hides or not padded else NOT_RUN), told(rows)
        assert row.status != NOT_RUN or "no padding mask" in row.reason


def test_a_static_cache_is_written_in_place_and_only_at_its_own_slots() -> None:
    of = decoder("llama-gqa-sdpa")
    loop = static(of).loop()
    x = np.random.default_rng(0).standard_normal((2, 6, 64), dtype=np.float32)
    loop.prefill({"x": x}, real=np.asarray([[1] * 6, [1] * 4 + [0] * 2], bool))
    before = loop.cached()
    loop.step({"x": x[:, :1]})
    for name, after in loop.cached().items():
        moved = np.argwhere((after != before[name]).any(axis=(1, 3)))
        assert moved.tolist() == [[0, 6], [1, 4]], name
        assert not after[:, :, 7:].any()


def node_of(model: ir.Model, op: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op)


def _no_position(graphs: Graphs) -> Graphs:
    """RoPE at the first positions, whatever is cached."""
    model = graphs.step.clone()
    first = node_of(model, "Slice")
    zero = ir.node("Constant", [], {"value_ints": [0]})
    one = ir.node("Sub", [first.inputs[2], first.inputs[1]])
    model.graph.insert_before(first, [zero, one])
    for node in model.graph:
        if node.op_type == "Slice" and node.inputs[0].name in ("freqs_cos", "freqs_sin"):
            node.replace_input_with(1, zero.outputs[0])
            node.replace_input_with(2, one.outputs[0])
    return changed(graphs, prefill=model, step=model)


def _sees_later_tokens(graphs: Graphs) -> Graphs:
    model = graphs.prefill.clone()
    node_of(model, "Attention").attributes.pop("is_causal")
    return changed(graphs, prefill=model)


def _one_slot_less(graphs: Graphs) -> Graphs:
    """The step does not see its own token."""
    model = graphs.step.clone()
    counted = node_of(model, "TRT_Attention")
    counted.replace_input_with(5, next(v for v in model.graph.inputs if v.name == "write_indices"))
    return changed(graphs, step=model)


def _one_slot_more(graphs: Graphs) -> Graphs:
    """The step sees a slot that holds a stale or no token."""
    model = graphs.step.clone()
    counted = node_of(model, "TRT_Attention")
    one = ir.node("Constant", [], {"value_ints": [1]})
    more = ir.node("Add", [counted.inputs[5], one.outputs[0]])
    model.graph.insert_before(counted, [one, more])
    counted.replace_input_with(5, more.outputs[0])
    return changed(graphs, step=model)


def _stale_values(graphs: Graphs) -> Graphs:
    """New values are written one slot too early."""
    model = graphs.step.clone()
    written = [node for node in model.graph if node.op_type == "TensorScatter"][1]
    one = ir.node("Constant", [], {"value_ints": [1]})
    before = ir.node("Sub", [written.inputs[2], one.outputs[0]])
    model.graph.insert_before(written, [one, before])
    written.replace_input_with(2, before.outputs[0])
    return changed(graphs, step=model)


def _swapped_cache(graphs: Graphs) -> Graphs:
    model = graphs.step.clone()
    attention = node_of(model, "Attention")
    key, value = attention.inputs[4:6]
    attention.replace_input_with(4, value)
    attention.replace_input_with(5, key)
    return changed(graphs, prefill=model, step=model)


@pytest.mark.parametrize(
    ("made", "mutate"),
    [
        (growing, _no_position),
        (growing, _swapped_cache),
        (static, _sees_later_tokens),
        (static, _one_slot_less),
        (static, _one_slot_more),
        (static, _stale_values),
    ],
)
def test_a_broken_loop_is_seen(made: Callable[..., Graphs], mutate: Callable[[Graphs], Graphs]) -> None:
    of = decoder("llama-gqa-sdpa")
    rows = {row.case: row for row in judged(of, mutate(made(of)))}
    assert rows["steps"].status == rows["ragged"].status == "fail", told(list(rows.values()))
