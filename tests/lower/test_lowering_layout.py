"""Heads that are moved forward and back around an attention stay in the channels where the target reads them there."""

import warnings

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from export.lower import for_ort_check, lower

HEAD = '<ir_version: 10, opset_import: ["": 23]>'
INPUTS = (
    "float[B,S,24] x, float[B,T,12] xk, float[B,T,12] xv, bool[B,1,S,T] m, "
    "float[B,S,4] cos, float[B,S,4] sin, float[B,T,4] kcos, float[B,T,4] ksin"
)
SPLIT = """
  to4 = Constant<value = int64[4] {0, 0, 4, 6}>()
  to2 = Constant<value = int64[4] {0, 0, 2, 6}>()
  back = Constant<value = int64[3] {0, 0, 24}>()
  qs = Reshape(x, to4)
  ks = Reshape(xk, to2)
  vs = Reshape(xv, to2)
  q = Transpose<perm = [0, 2, 1, 3]>(qs)
  k = Transpose<perm = [0, 2, 1, 3]>(ks)
  v = Transpose<perm = [0, 2, 1, 3]>(vs)
"""
MERGE = "turned = Transpose<perm = [0, 2, 1, 3]>(a)\n y = Reshape(turned, back)"
SIZES = ({"B": 2, "S": 3, "T": 5}, {"B": 1, "S": 1, "T": 1}, {"B": 3, "S": 6, "T": 2})


def model(nodes: str, output: str = "float[B,S,24] y", inputs: str = INPUTS) -> ir.Model:
    proto = onnx.parser.parse_model(f"{HEAD}\ng ({inputs}) => ({output}) {{ {nodes} }}")
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def same(before: ir.Model, after: ir.Model) -> None:
    """Runs the graph before in ONNX's reference implementation, and after on ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(after)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reference = ReferenceEvaluator(ir.to_proto(before))
    rng = np.random.default_rng(0)
    for sizes in SIZES:
        feeds = {}
        for value in before.graph.inputs:
            shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape or ()]
            drawn = rng.standard_normal(shape)
            feeds[str(value.name)] = drawn > -0.5 if value.dtype == ir.DataType.BOOL else drawn.astype(np.float32)
        taken = {i.name: feeds[i.name] for i in session.get_inputs()}
        for want, have in zip(reference.run(None, feeds), session.run(None, taken), strict=True):
            np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5, err_msg=str(sizes))


def kinds(graph: ir.Model) -> list[str]:
    return sorted(n.op_type for n in graph.graph if n.op_type != "Constant")


@pytest.mark.parametrize(
    "attributes", ["", "<is_causal = 1>", "<softcap = 2.0>", "<scale = 0.3>"], ids=["plain", "causal", "cap", "scale"]
)
@pytest.mark.parametrize("mask", ["", ", m"], ids=["open", "masked"])
def test_the_transposes_go(attributes: str, mask: str) -> None:
    before = model(f"{SPLIT} a = Attention{attributes}(q, k, v{mask})\n {MERGE}")
    lowered = lower(before, "ort")
    assert kinds(lowered.model) == ["Attention", "Identity"]
    assert [step.action for step in lowered.steps] == ["heads in channels"]
    node = next(n for n in lowered.model.graph if n.op_type == "Attention")
    assert [node.attributes[n].as_int() for n in ("q_num_heads", "kv_num_heads")] == [4, 2]
    same(before, lowered.model)
    again = lower(lowered.model, "ort")
    assert not again.steps


@pytest.mark.parametrize(
    "attributes",
    ["interleaved = 0", "interleaved = 1", "rotary_embedding_dim = 4", "rotary_embedding_dim = 2, interleaved = 1"],
)
def test_a_rotation_in_between_has_three_axes_too(attributes: str) -> None:
    width = 1 if "dim = 2" in attributes else 2 if "dim = 4" in attributes else 3
    inputs = INPUTS.replace(",4]", f",{width}]")
    nodes = f"""{SPLIT}
      qr = RotaryEmbedding<{attributes}>(q, cos, sin)
      kr = RotaryEmbedding<{attributes}>(k, kcos, ksin)
      a = Attention(qr, kr, v, m)
      {MERGE}"""
    before = model(nodes, inputs=inputs)
    lowered = lower(before, "ort")
    assert kinds(lowered.model) == ["Attention", "Identity", "RotaryEmbedding", "RotaryEmbedding"]
    rotations = [n for n in lowered.model.graph if n.op_type == "RotaryEmbedding"]
    assert [n.attributes["num_heads"].as_int() for n in rotations] == [4, 2]
    assert [n.name for n in rotations] == ["RotaryEmbedding_qr", "RotaryEmbedding_kr"]
    same(before, lowered.model)


def test_what_reads_the_heads_still_has_them() -> None:
    nodes = f"{SPLIT} a = Attention(q, k, v, m)\n {MERGE}\n z = Neg(a)"
    before = model(nodes, "float[B,S,24] y, float[B,4,S,6] z")
    lowered = lower(before, "ort").model
    assert kinds(lowered) == ["Attention", "Identity", "Neg", "Reshape", "Transpose"]
    same(before, lowered)


def test_an_output_of_heads_keeps_its_name_and_shape() -> None:
    before = model(f"{SPLIT} a = Attention(q, k, v, m)", "float[B,4,S,6] a")
    lowered = lower(before, "ort").model
    assert [str(v.name) for v in lowered.graph.outputs] == ["a"]
    same(before, lowered)


def test_a_rotation_that_others_read_is_not_done_twice() -> None:
    inputs = INPUTS.replace(",4]", ",3]")
    nodes = f"{SPLIT} kr = RotaryEmbedding(k, kcos, ksin)\n a = Attention(q, kr, v, m)\n {MERGE}\n z = Neg(kr)"
    before = model(nodes, "float[B,S,24] y, float[B,2,T,6] z", inputs)
    lowered = lower(before, "ort")
    assert not lowered.steps


def test_one_operand_with_its_heads_in_front_keeps_all_there() -> None:
    inputs = INPUTS.replace("float[B,T,12] xv", "float[B,2,T,6] v")
    nodes = SPLIT.replace("  vs = Reshape(xv, to2)\n", "").replace("  v = Transpose<perm = [0, 2, 1, 3]>(vs)\n", "")
    before = model(f"{nodes} a = Attention(q, k, v, m)\n {MERGE}", inputs=inputs)
    assert not lower(before, "ort").steps


def test_a_split_of_packed_channels_is_merged_again() -> None:
    """[B, S, 3, H, D] taken apart: each part is [B, S, H, D], and merging its heads moves nothing."""
    nodes = """
      shape = Constant<value = int64[5] {0, 0, 3, 4, 6}>()
      back = Constant<value = int64[3] {0, 0, 24}>()
      packed = Reshape(p, shape)
      i = Constant<value = int64 {0}>()
      j = Constant<value = int64 {1}>()
      l = Constant<value = int64 {2}>()
      qs = Gather<axis = 2>(packed, i)
      ks = Gather<axis = 2>(packed, j)
      vs = Gather<axis = 2>(packed, l)
      q = Transpose<perm = [0, 2, 1, 3]>(qs)
      k = Transpose<perm = [0, 2, 1, 3]>(ks)
      v = Transpose<perm = [0, 2, 1, 3]>(vs)
      a = Attention(q, k, v)
      turned = Transpose<perm = [0, 2, 1, 3]>(a)
      y = Reshape(turned, back)
    """
    before = model(nodes, inputs="float[B,S,72] p")
    lowered = lower(before, "ort").model
    assert "Transpose" not in kinds(lowered)
    same(before, lowered)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "onnx"])
def test_other_targets_keep_heads_in_front(target: str) -> None:
    before = model(f"{SPLIT} a = Attention(q, k, v)\n {MERGE}")
    assert kinds(lower(before, target).model).count("Transpose") == 4


def test_a_graph_lowered_for_one_target_is_lowered_for_another() -> None:
    before = model(f"{SPLIT} a = Attention<is_causal = 1>(q, k, v, m)\n {MERGE}")
    flat = lower(before, "ort").model
    same(before, for_ort_check(lower(flat, "tensorrt-rtx").model))


@pytest.mark.parametrize(
    "read",
    [
        "n = Shape<start = 2, end = 3>(q)",
        "all = Shape(q)\n two = Constant<value = int64[1] {2}>()\n n = Gather(all, two)",
    ],
    ids=["one axis", "gathered"],
)
def test_a_size_is_read_before_the_heads_are_moved(read: str) -> None:
    nodes = f"{SPLIT} a = Attention(q, k, v, m)\n {MERGE}\n {read}\n z = Neg(n)"
    before = model(nodes, "float[B,S,24] y, int64[1] z")
    lowered = lower(before, "ort").model
    assert set(kinds(lowered)) == {"Attention", "Gather", "Identity", "Neg", "Shape"} - (
        {"Gather"} if "start" in read else set()
    )
    same(before, lowered)


def test_a_size_of_repeated_keys_does_not_keep_the_repeat() -> None:
    nodes = f"""{SPLIT}
      a = Attention(q, k, v, m)
      {MERGE}
      third = Constant<value = int64[1] {{2}}>()
      five = Unsqueeze(k, third)
      rows = Shape<start = 0, end = 1>(k)
      columns = Shape<start = 2, end = 3>(k)
      two = Constant<value = int64[2] {{2, 2}}>()
      six = Constant<value = int64[1] {{6}}>()
      target = Concat<axis = 0>(rows, two, columns, six)
      repeated = Expand(five, target)
      merged = Constant<value = int64[4] {{0, 4, -1, 6}}>()
      whole = Reshape(repeated, merged)
      turned_keys = Transpose<perm = [0, 1, 3, 2]>(whole)
      head = Shape<start = 0, end = 3>(turned_keys)
      tail = Shape<start = 3>(turned_keys)
      vector = Concat<axis = 0>(head, tail)
      last = Constant<value = int64 {{3}}>()
      n = Gather(vector, last)
      z = Neg(n)"""
    before = model(nodes, "float[B,S,24] y, int64 z")
    names = {v.name: v for n in before.graph for v in n.outputs}
    for name, shape in {
        "five": "B 2 1 T 6",
        "repeated": "B 2 2 T 6",
        "whole": "B 4 T 6",
        "turned_keys": "B 4 6 T",
    }.items():
        names[name].shape = ir.Shape([int(d) if d.isdigit() else d for d in shape.split()])
        names[name].type = ir.TensorType(ir.DataType.FLOAT)
    for name, size in {"head": 3, "tail": 1, "vector": 4}.items():
        names[name].shape = ir.Shape([size])
    lowered = lower(before, "ort").model
    assert not {"Expand", "Transpose"} & set(kinds(lowered))
    same(before, lowered)


def test_a_size_is_not_read_off_what_may_be_repeated() -> None:
    read = "sum = Add(r, x)\n n = Shape<start = 0, end = 1>(sum)\n z = Neg(n)"
    nodes = f"{SPLIT} a = Attention(q, k, v, m)\n {MERGE}\n {read}"
    before = model(nodes, "float[B,S,24] y, int64[1] z", f"{INPUTS}, float[B,S,24] r")
    shape = next(n for n in lower(before, "ort").model.graph if n.op_type == "Shape")
    assert shape.inputs[0] is not None and shape.inputs[0].producer().op_type == "Add"
