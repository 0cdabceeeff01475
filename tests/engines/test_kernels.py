"""What became of each attention: every claim is read from the log of a real TensorRT-RTX build."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_models import BF16, BOOL, F16, F32, attention, make, model, one, qkv, spelled_out, value, weight
from onnx import helper

from engines.kernels import FUSED_TACTIC, HEAD_SIZES, KernelChoice, attention_kernels
from engines.layers import Layer, LayerTensor

pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed (there is no wheel for this system)")
SMS = (75, 80, 86, 89, 120, 121)


def choice(built: Any) -> KernelChoice:
    assert list(built.attentions) == ["attn"]
    return built.attentions["attn"]


@pytest.mark.parametrize("sm", SMS)
def test_fp16_is_one_kernel_on_every_architecture(tmp_path: Path, sm: int) -> None:
    built = make(one(F16), tmp_path, sm)
    assert choice(built).fused is True
    assert len(choice(built).kernels) == 1
    assert choice(built).why == "One fused MHA kernel computes it in float16."
    assert built.scratch is not None and built.scratch <= 8 << 20
    mha = next(layer for layer in built.layers if layer.name == choice(built).kernels[0])
    assert mha.tactic.startswith("_gemm_mha_v2_0x")
    assert mha.origins == ("attn",)


@pytest.mark.parametrize(
    ("form", "sm"),
    [
        (one(BF16), 80),
        (one(BF16), 89),
        (one(BF16, mask=BF16), 120),
        (one(F16, mask=F16), 75),
        (one(F16, mask=F16), 89),
        (one(F16, mask=BOOL), 89),
        (one(F16, mask=BOOL), 120),
        (one(F16, is_causal=1), 80),
        (one(F16, is_causal=1), 89),
        (one(F16, head_size=HEAD_SIZES[0]), 89),
        (one(F16, head_size=HEAD_SIZES[1]), 89),
        (one(F16, head_size=72), 120),
        (one(F16, decomposable=True), 89),
    ],
    ids=lambda form: form if isinstance(form, int) else None,
)
def test_forms_that_are_one_kernel(tmp_path: Path, form: onnx.ModelProto, sm: int) -> None:
    assert choice(make(form, tmp_path, sm)).fused is True


def test_a_bool_mask_costs_prelude_kernels_and_a_float_mask_none(tmp_path: Path) -> None:
    plain, floating, boolean = (len(make(one(F16, mask=m), tmp_path).layers) for m in (None, F16, BOOL))
    assert floating == plain
    assert boolean >= plain + 9


@pytest.mark.parametrize("sm", [75, 89, 120])
def test_fp32_is_taken_apart(tmp_path: Path, sm: int) -> None:
    built = make(one(F32, decomposable=True), tmp_path, sm)
    assert choice(built).fused is False
    assert len(choice(built).kernels) == 3  # two GEMMs and the softmax between them
    assert [layer.kind for layer in built.layers if layer.name in choice(built).kernels] == ["gemm", "kgen", "gemm"]
    assert choice(built).why.endswith("fused MHA kernels take fp16 and bf16, and it computes in float32.")
    assert built.scratch is not None and built.scratch > 64 << 20  # it writes the score matrices


@pytest.mark.parametrize("head_size", [HEAD_SIZES[0] - 1, HEAD_SIZES[1] + 1])
def test_a_head_size_without_a_kernel_is_taken_apart(tmp_path: Path, head_size: int) -> None:
    built = make(one(F16, head_size=head_size, decomposable=True), tmp_path)
    assert choice(built).fused is False
    assert choice(built).why.endswith(f"fused MHA kernels take head sizes 9 to 256, and its is {head_size}.")


def test_a_query_of_fixed_length_one_takes_the_vector_kernel(tmp_path: Path) -> None:
    dims = {"B": (1, 2, 8), "S": (1, 1, 1), "N": (1, 128, 512)}
    for form in (one(F16), one(F32, decomposable=True)):  # which exists in float32 too
        built = make(form, tmp_path, dims=dims)
        assert choice(built).fused is True
        assert choice(built).kernels[0].startswith("_gemv_mha_v1")


def test_two_attentions_are_told_apart_one_fused_and_one_not(tmp_path: Path) -> None:
    inputs = qkv(F16) + qkv(F32, suffix="2")
    nodes = [
        attention("half", ["q", "k", "v"], "y"),
        attention("single", ["q2", "k2", "v2"], "y2", decomposable=True),
    ]
    outputs = [value("y", F16, "B", 4, "S", 64), value("y2", F32, "B", 4, "S", 64)]
    built = make(model(nodes, inputs, outputs), tmp_path)
    assert [(c.attention, c.fused) for c in built.attentions.values()] == [("half", True), ("single", False)]
    assert not set(built.attentions["half"].kernels) & set(built.attentions["single"].kernels)


def test_attentions_that_share_a_product_keep_their_own_kernels(tmp_path: Path) -> None:
    # K is scaled once for both, so the builder writes both names on a kernel.
    inputs = [*qkv(F16), *qkv(F16, suffix="2")[::2]]
    nodes = [
        helper.make_node("Mul", ["q", "c"], ["qc"], name="scale0"),
        helper.make_node("Mul", ["q2", "c"], ["qc2"], name="scale1"),
        attention("a0", ["qc", "k", "v"], "y0", scale=1.0),
        attention("a1", ["qc2", "k", "v2"], "y1", scale=1.0),
        helper.make_node("Add", ["y0", "y1"], ["y"], name="add"),
    ]
    half = weight("c", np.array(0.125, np.float16))
    built = make(model(nodes, inputs, [value("y", F16, "B", 4, "S", 64)], [half]), tmp_path)
    mha = [layer for layer in built.layers if FUSED_TACTIC.match(layer.tactic)]
    assert len(mha) == 2
    assert max(len(layer.origins) for layer in mha) == 2  # else this graph no longer shows what it is for
    assert [c.fused for c in built.attentions.values()] == [True, True]
    assert {c.kernels for c in built.attentions.values()} == {(layer.name,) for layer in mha}


def test_a_chain_the_builder_fuses_itself_is_seen(tmp_path: Path) -> None:
    def spelled(dtype: int, array: type) -> onnx.ModelProto:
        c = weight("c", np.array(0.125, array))
        return model(spelled_out("/a", "q", "k", "v", "y"), qkv(dtype), [value("y", dtype, "B", 4, "S", 64)], [c])

    built = make(spelled(F16, np.float16), tmp_path)
    assert {n: c.fused for n, c in built.attentions.items()} == {"/a/Softmax": True}
    built = make(spelled(F32, np.float32), tmp_path)
    assert {n: c.fused for n, c in built.attentions.items()} == {"/a/Softmax": False}
    assert len(built.attentions["/a/Softmax"].kernels) == 3


def test_a_softmax_of_another_kind_is_no_attention(tmp_path: Path) -> None:
    x = [value("x", F16, "B", 10)]
    built = make(
        model([helper.make_node("Softmax", ["x"], ["y"], name="head")], x, [value("y", F16, "B", 10)]), tmp_path
    )
    assert built.attentions == {}


@pytest.mark.parametrize(
    "names", [("", ""), ("same", "same"), ("a, b] [ONNX Layer: x]", "Metadata: q, TacticName: |y")]
)
def test_names_that_are_missing_doubled_or_strange(tmp_path: Path, names: tuple[str, str]) -> None:
    nodes = [attention(names[0], ["q", "k", "v"], "y0"), attention(names[1], ["q2", "k2", "v2"], "y1")]
    outputs = [value(n, F16, "B", 4, "S", 64) for n in ("y0", "y1")]
    built = make(model(nodes, [*qkv(F16), *qkv(F16, suffix="2")], outputs), tmp_path)
    found = built.attentions
    assert all(c.fused is True for c in found.values())
    assert len({k for c in found.values() for k in c.kernels}) == 2
    if names == ("", ""):
        assert list(found) == ["node_of_y0", "node_of_y1"]


def test_an_attention_inside_a_function_is_not_lost(tmp_path: Path) -> None:
    body = [attention("inner", ["a", "b", "c"], "r")]
    function = helper.make_function("my", "Block", ["a", "b", "c"], ["r"], body, [helper.make_opsetid("", 23)])
    call = helper.make_node("Block", ["q", "k", "v"], ["y"], domain="my", name="call")
    built = make(
        model([call], qkv(F16), [value("y", F16, "B", 4, "S", 64)], domains=["my"], functions=[function]), tmp_path
    )
    assert {n: c.fused for n, c in built.attentions.items()} == {"inner | call (Block)": True}


def test_nodes_named_like_kernels_fool_nobody(tmp_path: Path) -> None:
    x = [value("x", F16, "B", "S", 64)]
    w = weight("w", np.ones((64, 64), np.float16))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="_gemm_mha_v2")
    built = make(model([node], x, [value("y", F16, "B", "S", 64)], [w]), tmp_path)
    assert any("_gemm_mha_v2" in layer.name for layer in built.layers)
    assert built.attentions == {}


def layer(name: str, tactic: str, *origins: str, kind: str = "kgen") -> Layer:
    return Layer(name, kind, tactic, (LayerTensor("q", "float16", (-1,)),), (), origins)


def test_without_layers_nothing_is_claimed() -> None:
    (found,) = attention_kernels((), {"a": ("a",)}).values()
    assert (found.fused, found.kernels) == (None, ())
    assert "lists no layers" in found.why


def test_an_attention_without_a_layer_is_not_claimed() -> None:
    (found,) = attention_kernels((layer("relu", "__myl_Relu_0x1", "r"),), {"a": ("a",)}).values()
    assert (found.fused, found.kernels) == (None, ())
    assert "No layer of the engine carries its name" in found.why


def test_kernels_are_handed_out_once() -> None:
    mha = "_gemm_mha_v2_0x1"
    both = attention_kernels((layer("k0", mha, "a", "b"), layer("k1", mha, "b", "a")), {"a": ("a",), "b": ("b",)})
    assert {n: (c.fused, c.kernels) for n, c in both.items()} == {"a": (True, ("k0", "k1")), "b": (True, ("k0", "k1"))}
    one_for_two = attention_kernels((layer("k0", mha, "a", "b"),), {"a": ("a",), "b": ("b",)})
    assert [(c.fused, c.kernels) for c in one_for_two.values()] == [(None, ()), (None, ())]
    assert "do not tell how" in one_for_two["a"].why


def test_of_two_that_could_have_a_kernel_the_one_with_a_softmax_has_not() -> None:
    layers = (layer("k0", "_gemm_mha_v2_0x1", "b", "a"), layer("s", "__myl_MaxrSubExpSumDiv_0x1", "b"))
    found = attention_kernels(layers, {"b": ("b",), "a": ("a",)})
    assert {n: (c.fused, c.kernels) for n, c in found.items()} == {"a": (True, ("k0",)), "b": (False, ("s",))}


def test_an_attention_of_two_kernels_has_both() -> None:
    mha = "_gemm_mha_v2_0x1"
    (found,) = attention_kernels((layer("k0", mha, "a"), layer("k1", mha, "a")), {"a": ("a",)}).values()
    assert found.kernels == ("k0", "k1")
    assert found.why == "2 fused MHA kernels compute it in float16."


def test_a_fused_kernel_nobody_asked_about_is_told() -> None:
    found = attention_kernels((layer("k0", "_gemv_mha_v1_0x1_vec", "x"),), {})
    assert found["x"].fused is True
