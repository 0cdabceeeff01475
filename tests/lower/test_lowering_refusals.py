"""What no step can bring to a target is refused in a sentence that names the node, before any parser."""

import lowering_graphs as g
import onnx_ir as ir
import pytest

from export.errors import LoweringRefusedError
from export.lower import lower

ENGINES = ("tensorrt-rtx", "tensorrt")


def refused(graph: ir.Model, target: str, *words: str) -> None:
    with pytest.raises(LoweringRefusedError) as caught:
        lower(graph, target)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


def custom(domain: str, op: str) -> ir.Model:
    text = f"""<ir_version: 11, opset_import: ["" : 23, "{domain}" : 1]>
    g (float[B,4] x) => (float[B,4] y) {{ [mine] y = {domain}.{op} (x) }}"""
    return ir.from_onnx_text(text)


def test_custom_operators() -> None:
    refused(custom("acme", "Swish9"), "tensorrt-rtx", "'mine'", "acme::Swish9", "no plugins")
    lower(custom("acme", "Swish9"), "tensorrt")  # a plugin may bring it
    for target in ("onnx", "ort"):
        lower(custom("acme", "Swish9"), target)


def test_a_custom_operator_named_as_a_standard_one() -> None:
    refused(custom("acme", "Relu"), "tensorrt", "'mine'", "acme::Relu", "ignores domains")
    refused(custom("acme", "Relu"), "tensorrt-rtx", "acme::Relu")


@pytest.mark.parametrize("target", ENGINES)
def test_operators_of_onnx_runtime_alone(target: str) -> None:
    refused(
        custom("com.microsoft", "SkipLayerNormalization"), target, "'mine'", "com.microsoft::SkipLayerNormalization"
    )
    lower(custom("com.microsoft", "Gelu"), target)
    lower(custom("com.microsoft", "SkipLayerNormalization"), "ort")


@pytest.mark.parametrize("target", ["ort", *ENGINES])
def test_a_mask_of_batch_query_key(target: str) -> None:
    refused(g.attention("bool[B,S,T]"), target, "'attn'", "['B', 'S', 'T']", "unsqueeze(1)")
    refused(g.attention("bool[3,S,T]"), target, "[3, 'S', 'T']", "4 heads")
    lower(g.attention("bool[4,S,T]"), target)
    lower(g.attention("bool[1,S,T]"), target)


@pytest.mark.parametrize("target", ["ort", *ENGINES])
def test_a_mask_with_one_column(target: str) -> None:
    refused(g.attention("bool[B,1,S,1]"), target, "'attn'", "one column for all keys")
    lower(g.attention("bool[B,1,S,1]", keys="1"), target)


@pytest.mark.parametrize("target", ENGINES)
def test_types_that_tensorrt_does_not_compute(target: str) -> None:
    refused(g.attention(dtype="double"), target, "'attn'", "DOUBLE")
    refused(g.attention("", "softmax_precision: int = 11"), target, "'attn'", "DOUBLE", "float32 softmax")
    lower(g.attention(dtype="double"), "ort")


def test_an_opset_beyond_onnx_runtime() -> None:
    refused(g.attention(opset=28), "ort", "opset 28", "26")
    lower(g.attention(opset=28), "tensorrt-rtx")


def test_a_mask_of_unknown_type() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23, "acme" : 1]>
    g (float16[B,4,S,16] q, float16[B,4,S,16] k, float16[B,4,S,16] v) => (float16[B,4,S,16] y) {
      m = acme.Mask (q) [attn] y = Attention <scale: float = 0.25> (q, k, v, m) }"""
    refused(ir.from_onnx_text(text), "tensorrt", "'attn'", "type of its mask is not known")


def test_a_cached_value_of_another_type() -> None:
    inputs = "float16[B,4,S,16] q, float16[B,4,S,16] k, float[B,4,S,16] v, float16[B,4,P,16] pk, float[B,4,P,16] pv"
    body = "[attn] y, ok, ov = Attention <scale: float = 0.25> (q, k, v, , pk, pv)"
    outputs = "float16[B,4,S,16] y, float16[B,4,PS,16] ok, float[B,4,PS,16] ov"
    refused(g.model(inputs, body, outputs), "ort", "'attn'", "caches V as FLOAT")
    plain = g.model(inputs.split(", float16[B,4,P")[0], "[attn] y = Attention (q, k, v)", "float16[B,4,S,16] y")
    assert [s.action for s in lower(plain, "ort").steps] == ["cast value"]
    g.check(lower(plain, "ort").model)
    g.run_ort(lower(plain, "ort").model, g.feeds(plain))


def test_contrib_attentions_that_share_a_query() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float16[B,S,64] q, float16[B,S,64] k, float16[B,S,64] l, float16[B,S,64] v) => (float16[B,S,64] y) {
      [one] a = com.microsoft.MultiHeadAttention <num_heads: int = 4> (q, k, v)
      [two] b = com.microsoft.MultiHeadAttention <num_heads: int = 4> (q, l, v)
      y = Add (a, b) }"""
    refused(ir.from_onnx_text(text), "tensorrt-rtx", "'one'", "crashes")
