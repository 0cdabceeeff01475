"""What each step writes, and that it says why: small graphs before and after."""

import lowering_graphs as g
import numpy as np
import onnx_ir as ir
import pytest

from export.errors import UsageError
from export.lower import TARGETS, for_ort_check, lower
from export.lower.call import TRT_MARK

RTX = "tensorrt-rtx"


def actions(graph: ir.Model, target: str) -> list[str]:
    return [s.action for s in lower(graph, target).steps]


def attributes(graph: ir.Model) -> dict[str, object]:
    return {n: a.value for n, a in g.node(graph).attributes.items()}


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="tensorrt-rtx"):
        lower(g.attention(), "tensorflow")


def test_nothing_is_done_for_onnx() -> None:
    for graph in (g.attention("bool[B,1,1,T]", "is_causal: int = 1, softcap: float = 2.0"), g.attention("bool[B,S,T]")):
        lowered = lower(graph, "onnx")
        assert lowered.steps == ()
        assert ir.to_proto(lowered.model) == ir.to_proto(graph)
        assert lowered.model is not graph


@pytest.mark.parametrize("target", ["ort", RTX])
def test_a_graph_that_is_right_stays_as_it_is(target: str) -> None:
    mask = "bool[B,1,S,T]" if target == "ort" else ""
    graph = g.attention(mask, dtype="float16")
    lowered = lower(graph, target)
    assert lowered.steps == ()
    assert ir.to_proto(lowered.model) == ir.to_proto(graph)


def test_a_graph_without_attention_passes_every_target() -> None:
    graph = g.model("float[B,4] x", "y = Relu (x)", "float[B,4] y", opset=18)
    for target in TARGETS:
        lowered = lower(graph, target)
        assert lowered.steps == ()
        assert g.ops(lowered.model) == ["Relu"]


def test_names_types_and_shapes_of_the_outputs_stay() -> None:
    graph = g.attention("bool[B,1,1,T]", "is_causal: int = 1", dtype="float16", size=8)
    for target in TARGETS:
        lowered = lower(graph, target).model
        (y,) = lowered.graph.outputs
        assert (y.name, y.dtype, str(y.shape)) == ("y", ir.DataType.FLOAT16, "[B,4,S,8]")
        assert g.node(lowered).name == "attn"


def test_two_attentions_get_names_of_their_own() -> None:
    body = "[a] t = Attention <scale: float = 0.25> (q, k, v, m) [b] y = Attention <scale: float = 0.5> (t, k2, v, m)"
    qkv = "float16[B,4,S,16] q, float16[B,4,S,16] k, float16[B,4,S,16] k2, float16[B,4,S,16] v"
    graph = g.model(f"{qkv}, bool[B,1,1,S] m", body, "float16[B,4,S,16] y")
    for target in ("ort", RTX):
        lowered = lower(graph, target).model
        names = [n.name for n in lowered.graph]
        assert len(names) == len(set(names))
        assert [n.name for n in lowered.graph if n.op_type == "Attention"] == ["a", "b"]
        g.check(lowered)


def test_layers_share_one_lowered_mask() -> None:
    body = " ".join(f"[a{i}] x{i + 1} = Attention <scale: float = 0.25> (x{i}, k{i}, v, m)" for i in range(4))
    keys = ", ".join(f"float16[B,4,S,16] k{i}" for i in range(4))
    graph = g.model(f"float16[B,4,S,16] x0, {keys}, float16[B,4,S,16] v, bool[B,1,1,S] m", body, "float16[B,4,S,16] x4")
    once = g.ops(lower(graph, RTX).model)
    assert once.count("ReduceMax") == once.count("Greater") == 1
    assert once.count("Where") == 1 + 4  # the mask, and the rows of each output


def test_equal_nodes_of_the_user_are_left_alone() -> None:
    qkv = "float16[B,4,S,16] q, float16[B,4,S,16] k, float16[B,4,S,16] v, bool[B,1,1,S] m"
    body = "a = Relu (v) b = Relu (v) c = Add (a, b) [attn] y = Attention <scale: float = 0.25> (q, k, c, m)"
    lowered = lower(g.model(qkv, body, "float16[B,4,S,16] y"), RTX).model
    assert g.ops(lowered).count("Relu") == 2


# ---- ONNX Runtime


def test_ort_gets_a_mask_expanded_along_the_queries() -> None:
    graph = g.attention("bool[B,1,1,T]")
    lowered = lower(graph, "ort")
    assert actions(graph, "ort") == ["expand mask"]
    assert g.ops(lowered.model) == ["Shape", "Concat", "Expand", "Attention"]
    assert "ONNX Runtime" in lowered.steps[0].why
    assert lowered.steps[0].attention == "attn"
    mask = g.node(lowered.model).inputs[3]
    assert mask is not None and str(mask.shape) == "[B,1,S,T]"


def test_ort_keeps_a_mask_that_is_full() -> None:
    for shape in ("[B,1,S,T]", "[S,T]", "[4,S,T]", "[1,1,S,T]"):
        assert actions(g.attention(f"bool{shape}"), "ort") == []


def test_ort_lowest_is_raised_only_where_it_can_be() -> None:
    qkv = "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, bool[B,1,S,T] c"
    for fill, wanted in ((g.LOWEST, ["raise lowest"]), (-1e9, []), (-np.inf, [])):
        text = "-inf" if np.isinf(fill) else repr(fill)
        body = (
            f"z = Constant <value_float: float = 0.0> () f = Constant <value_float: float = {text}> () "
            "m = Where (c, z, f) [attn] y = Attention <scale: float = 0.25> (q, k, v, m)"
        )
        assert actions(g.model(qkv, body), "ort") == wanted


def test_ort_gets_the_missing_columns_of_a_short_mask_hidden() -> None:
    graph = g.attention("bool[2,1,5,4]", keys="7", opset=24)
    lowered = lower(graph, "ort").model
    assert "Pad" in g.ops(lowered)
    given = g.feeds(graph)
    (got,) = g.run_ort(lowered, given)
    full = dict(given, m=np.pad(given["m"], [(0, 0), (0, 0), (0, 0), (0, 3)]))
    (want,) = g.run_ort(g.attention("bool[2,1,5,7]", keys="7", opset=24), full)
    np.testing.assert_array_equal(got, want)


# ---- TensorRT


def test_rtx_gets_a_finite_mask_and_a_guard() -> None:
    lowered = lower(g.attention("bool[B,1,1,T]", dtype="float16"), RTX)
    assert g.ops(lowered.model) == ["Where", "ReduceMax", "Greater", "Attention", "Where"]
    assert "not known to be ONNX's 0" in lowered.steps[0].why
    fill = g.node(lowered.model).inputs[3].producer().inputs[2]  # type: ignore[union-attr]
    assert fill.const_value.numpy() == np.finfo(np.float16).min


def test_rtx_needs_no_guard_where_a_row_has_a_key_for_sure() -> None:
    bias = "float16[1,4,S,T] table"
    qkv = "float16[B,4,S,16] q, float16[B,4,T,16] k, float16[B,4,T,16] v"
    body = "m = MatMul (a, b) [attn] y = Attention <scale: float = 0.25> (q, k, v, m)"
    graph = g.model(f"{qkv}, float16[1,4,S,9] a, float16[1,4,9,T] b", body, "float16[B,4,S,16] y")
    assert actions(graph, RTX) == []
    assert bias
    window = g.attention("", "left_window_size: int = 2, is_causal: int = 1", dtype="float16", keys="S")
    assert "ReduceMax" not in g.ops(lower(window, RTX).model)
    crossed = g.attention("", "left_window_size: int = 2, is_causal: int = 1", dtype="float16")
    assert "ReduceMax" in g.ops(lower(crossed, RTX).model)


def test_rtx_needs_no_guard_for_a_constant_mask_with_a_key_in_each_row() -> None:
    def constant(keep: np.ndarray) -> list[str]:
        graph = g.attention("bool[5,5]", dtype="float16", queries="5", keys="5")
        value = graph.graph.inputs.pop()
        value.const_value = ir.tensor(keep, name="m")
        graph.graph.register_initializer(value)
        return g.ops(lower(graph, RTX).model)

    triangle = np.tril(np.ones((5, 5), bool))
    assert "ReduceMax" not in constant(triangle)
    triangle[2] = False
    assert "ReduceMax" in constant(triangle)


def test_rtx_keeps_causal_alone_and_folds_it_beside_a_mask() -> None:
    alone = lower(g.attention("", "is_causal: int = 1", dtype="float16"), RTX)
    assert alone.steps == ()
    both = lower(g.attention("bool[B,1,1,T]", "is_causal: int = 1", dtype="float16"), RTX)
    assert [s.action for s in both.steps] == ["fold causal", "finite mask"]
    assert "is_causal" not in attributes(both.model)


@pytest.mark.parametrize(
    ("size", "value_size", "wanted"), [(8, 8, 16), (16, 8, 16), (16, 32, 32), (4, 24, 24), (256, 64, 256)]
)
def test_rtx_head_sizes_are_padded_into_the_fused_range(size: int, value_size: int, wanted: int) -> None:
    lowered = lower(g.attention(dtype="float16", size=size, value_size=value_size), RTX)
    assert [s.action for s in lowered.steps] == ["pad heads"]
    query, key, value = (v.shape for v in g.node(lowered.model).inputs[:3])  # type: ignore[union-attr]
    assert [s[3] for s in (query, key, value) if s is not None] == [wanted] * 3


def test_rtx_padding_keeps_the_default_scale() -> None:
    graph = g.attention(dtype="float16", size=8)
    g.node(graph).attributes.pop("scale")
    assert attributes(lower(graph, RTX).model)["scale"] == pytest.approx(8**-0.5)


def test_rtx_marks_what_has_no_fused_kernel_and_says_so() -> None:
    for graph, word in ((g.attention(), "FLOAT"), (g.attention(dtype="float16", size=320), "head size 320")):
        lowered = lower(graph, RTX)
        assert [s.action for s in lowered.steps] == ["mark decomposable"]
        assert word in lowered.steps[0].why and "taken apart" in lowered.steps[0].why
        assert attributes(lowered.model)[TRT_MARK] == 1
        plain = for_ort_check(lowered.model)
        assert TRT_MARK not in attributes(plain)
        g.check(plain)
    assert actions(g.attention(dtype="float16", size=9, queries="5"), RTX) == []


def test_rtx_marks_what_only_a_profile_can_unfuse() -> None:
    for graph in (g.attention(dtype="float16", size=9), g.attention(dtype="float16", heads=2, kv_heads=2)):
        (step,) = lower(graph, RTX).steps
        assert step.action == "mark decomposable"
        assert "marked, it builds where a profile fixes the length at 1; any other is fused" in step.why


def test_rtx_one_query_is_padded_to_the_sizes_its_kernel_has() -> None:
    lowered = lower(g.attention(dtype="float16", size=20, queries="1"), RTX)
    assert [s.action for s in lowered.steps] == ["pad heads"]
    assert str(g.node(lowered.model).inputs[0].shape) == "[B,4,1,24]"  # type: ignore[union-attr]


def test_rtx_one_head_under_a_mask_becomes_the_batch() -> None:
    lowered = lower(g.attention("bool[B,1,1,T]", dtype="float16", heads=1, kv_heads=1), RTX)
    assert [s.action for s in lowered.steps] == ["finite mask", "batch as heads", "mark decomposable"]
    assert "the batch" in lowered.steps[2].why
    assert [str(v.shape) for v in g.node(lowered.model).inputs if v] == [
        "[1,B,S,16]",
        "[1,B,T,16]",
        "[1,B,T,16]",
        "[1,B,1,T]",
    ]
    assert [s.action for s in lower(g.attention(dtype="float16", heads=1, kv_heads=1, queries="5"), RTX).steps] == []


def test_rtx_one_head_under_a_mask_in_a_batch_of_one_is_taken_apart() -> None:
    inputs = "float16[1,1,5,16] q, float16[1,1,T,16] k, float16[1,1,T,16] v, bool[1,1,5,T] m"
    body = "[attn] y = Attention <scale: float = 0.25> (q, k, v, m)"
    steps = lower(g.model(inputs, body, "float16[1,1,5,16] y"), RTX).steps
    assert [s.action for s in steps] == ["finite mask", "mark decomposable"]
    assert "mask with fewer than 2 heads" in steps[1].why


def test_tensorrt_marks_all_because_its_range_is_not_known() -> None:
    lowered = lower(g.attention(dtype="bfloat16"), "tensorrt")
    assert [s.action for s in lowered.steps] == ["mark decomposable"]
    assert "depends on the GPU" in lowered.steps[0].why


def test_rtx_softmax_precision() -> None:
    fused = lower(g.attention("", "softmax_precision: int = 1", dtype="float16"), RTX)
    assert [s.action for s in fused.steps] == ["drop softmax precision"]
    assert "softmax_precision" not in attributes(fused.model)
    unfused = lower(g.attention("", "softmax_precision: int = 1", dtype="float16", size=320), RTX)
    assert [s.action for s in unfused.steps] == ["decompose"]
    softmax = g.node(unfused.model, "Softmax")
    assert softmax.outputs[0].dtype == ir.DataType.FLOAT
    assert softmax.name == "attn"


def test_rtx_softcap_is_written_out_without_repeating_keys() -> None:
    lowered = lower(g.attention("", "softcap: float = 3.0", dtype="float16", kv_heads=2), RTX)
    assert [s.action for s in lowered.steps] == ["decompose"]
    assert "softcap" in lowered.steps[0].why
    assert not {"Attention", "Expand", "Tile"} & set(g.ops(lowered.model))


def test_unread_outputs_cost_nothing() -> None:
    qkv = "float16[B,4,S,16] q, float16[B,4,T,16] k, float16[B,4,T,16] v"
    graph = g.model(qkv, "[attn] y, ok, ov, w = Attention <scale: float = 0.25> (q, k, v)", "float16[B,4,S,16] y")
    lowered = lower(graph, RTX).model
    assert g.ops(lowered) == ["Attention"]
    assert [v.name for v in g.node(lowered).outputs] == ["y"]


def test_attention_inside_a_branch_is_lowered_there() -> None:
    branch = "then_branch = t () => (float16[B,4,S,16] r) { [attn] r = Attention <scale: float = 0.25> (q, k, v, m) }"
    other = "else_branch = e () => (float16[B,4,S,16] s) { s = Identity (q) }"
    qkv = "float16[B,4,S,16] q, float16[B,4,S,16] k, float16[B,4,S,16] v, bool[B,1,1,S] m, bool c"
    graph = g.model(qkv, f"y = If (c) <{branch}, {other}>", "float16[B,4,S,16] y")
    lowered = lower(graph, RTX)
    assert [s.action for s in lowered.steps] == ["decompose", "finite mask"]  # the builder loses its operands there
    inner = g.node(lowered.model, "If").attributes["then_branch"].as_graph()
    assert [n.op_type for n in inner if n.op_type in ("Attention", "MatMul", "Softmax")] == [
        "MatMul",
        "Softmax",
        "MatMul",
    ]
    g.check(lowered.model)


def test_functions_are_inlined_before_their_names_are_taken_for_operators() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23, "mine" : 1]>
    g (float16[B,4,S,16] q, float16[B,4,S,16] k, float16[B,4,S,16] v) => (float16[B,4,S,16] y) {
      y = mine.Relu (q, k, v) }
    <domain: "mine", opset_import: ["" : 23]> Relu (a, b, c) => (r) { r = Attention <scale: float = 0.25> (a, b, c) }"""
    graph = ir.from_onnx_text(text)
    for target in ("ort", RTX):
        lowered = lower(graph, target)
        assert g.ops(lowered.model) == ["Attention"]
        assert lowered.steps[0].action == "inline 1 functions"
    assert len(graph.functions) == 1


def test_the_users_metadata_stays_on_what_replaces_a_node() -> None:
    graph = g.attention("bool[B,1,1,T]", dtype="float16")
    g.node(graph).metadata_props["pkg.torch.onnx.stack_trace"] = "model.py:12"
    for made in lower(graph, RTX).model.graph:
        if made.op_type != "Constant":
            assert made.metadata_props["pkg.torch.onnx.stack_trace"] == "model.py:12"


def test_shapes_that_the_file_does_not_state_are_inferred() -> None:
    qkv = "float16[B,S,64] x, bool[B,1,1,S] m"
    body = """p = Constant <value_ints: ints = [0, 0, 4, 16]> ()
    r = Reshape (x, p)  q = Transpose <perm: ints = [0, 2, 1, 3]> (r)
    e = Exp (q)  [attn] y = Attention <scale: float = 0.25> (q, e, q, m)"""
    assert actions(g.model(qkv, body, "float16[B,4,S,16] y"), RTX) == ["finite mask"]


@pytest.mark.parametrize("mask", ["bool[B,1,S,T]", "float[S,T]"])
def test_masked_scores_are_masked_outside_where_the_runtime_shows_them_before_the_mask(mask: str) -> None:
    body = "[attn] y, , , w = Attention <scale: float = 0.25, qk_matmul_output_mode: int = 2> (q, k, v, m)"
    inputs = f"float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, {mask} m"
    graph = g.model(inputs, body, "float[B,4,S,16] y, float[B,4,S,T] w")
    assert actions(graph, "ort")[0] == "mask the shown scores outside"
    lowered = lower(graph, "ort").model
    assert attributes(lowered)["qk_matmul_output_mode"] == 1 and "Softmax" not in g.ops(lowered)
    assert "decompose" in actions(graph, RTX)
