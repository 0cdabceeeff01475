"""On full TensorRT an attention that it refuses becomes the plugin node, which computes what the graph said."""

import numpy as np
import onnx_ir as ir
import pytest

from export.errors import UsageError
from export.lower import for_ort_check, lower

HEADER = '<ir_version: 11, opset_import: ["": 23]>'
CAPPED = """
g (float[B,4,S,16] q, float[B,2,T,16] k, float[B,2,T,24] v, {mask}) => (float[B,4,S,24] y) {{
  y = Attention <scale = 0.3, softcap = 4.0{more}> (q, k, v, m)
}}
"""
PAST = """
g (float[B,4,S,16] q, float[B,2,S,16] k, float[B,2,S,16] v, float[B,2,P,16] pk, float[B,2,P,16] pv)
=> (float[B,4,S,16] y, float[B,2,T,16] nk, float[B,2,T,16] nv) {
  y, nk, nv = Attention <softcap = 4.0, is_causal = 1> (q, k, v, "", pk, pv)
}
"""
LENGTHS = """
g (float[B,4,S,16] q, float[B,2,T,16] k, float[B,2,T,16] v, int64[B] n) => (float[B,4,S,16] y) {
  y = Attention <softcap = 4.0, is_causal = 1> (q, k, v, "", "", "", n)
}
"""


def model(text: str, opset: int = 23) -> ir.Model:
    return ir.from_onnx_text(HEADER.replace("23", str(opset)) + text)


def run(graph: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnx.reference

    with np.errstate(invalid="ignore"):  # a row without keys is NaN until the graph replaces it
        return list(onnx.reference.ReferenceEvaluator(ir.to_proto(graph)).run(None, feeds))


def plugins_of(graph: ir.Model) -> list[ir.Node]:
    return [node for node in graph.graph if node.domain == "attnproof"]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 2


@pytest.mark.parametrize(
    ("mask", "fed", "more"),
    [
        ("float[B,1,1,T] m", draw(2, 1, 1, 7), ""),
        ("bool[S,T] m", np.arange(7) < 3 + np.arange(5)[:, None], ""),
        ("bool[B,1,S,T] m", draw(2, 1, 5, 7) > -2, ", is_causal = 1"),
    ],
    ids=["float", "bool", "bool-and-causal"],
)
def test_softcap_is_the_plugins(mask: str, fed: np.ndarray, more: str) -> None:
    graph = model(CAPPED.format(mask=mask, more=more))
    lowered = lower(graph, "tensorrt")
    (node,) = plugins_of(lowered.model)
    assert node.attributes["plugin_namespace"].as_string() == "attnproof"
    assert [s.action for s in lowered.steps] == ["plugin"]
    assert not [n for n in lowered.model.graph if n.op_type in ("Softmax", "Attention")]
    feeds = {"q": draw(2, 4, 5, 16), "k": draw(2, 2, 7, 16), "v": draw(2, 2, 7, 24), "m": fed}
    np.testing.assert_allclose(run(for_ort_check(lowered.model), feeds)[0], run(graph, feeds)[0], atol=2e-5)


@pytest.mark.parametrize("length", [0, 3])
def test_a_cache_goes_outside_and_causal_counts_from_its_end(length: int) -> None:
    graph = model(PAST)
    lowered = lower(graph, "tensorrt").model
    (node,) = plugins_of(lowered)
    assert node.attributes["causal_kind"].as_int() == 2
    feeds = {name: draw(2, heads, 4, 16) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    feeds |= {"pk": draw(2, 2, length, 16), "pv": draw(2, 2, length, 16) + 1}
    for found, expected in zip(run(for_ort_check(lowered), feeds), run(graph, feeds), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_valid_lengths_are_an_input_of_the_plugin() -> None:
    graph = model(LENGTHS, 24)
    (node,) = plugins_of(lower(graph, "tensorrt").model)
    assert (node.attributes["has_lengths"].as_int(), node.attributes["causal_kind"].as_int()) == (1, 2)


def test_what_is_native_stays_native_unless_the_plugin_is_asked_for() -> None:
    graph = model(PAST.replace("softcap = 4.0, ", ""))
    assert plugins_of(lower(graph, "tensorrt").model) == []
    (node,) = plugins_of(lower(graph, "tensorrt", "plugin").model)
    assert node.attributes["softcap"].as_float() == 0.0


def test_what_the_kernel_cannot_hold_is_written_out_and_said() -> None:
    graph = model(CAPPED.format(mask="float[B,1,1,T] m", more="").replace("16]", "8]"))
    assert plugins_of(lower(graph, "tensorrt").model) == []
    steps = lower(graph, "tensorrt", "plugin").steps
    assert steps[0].action == "no plugin"
    assert "a head size of 8" in steps[0].why


def test_rtx_takes_no_plugins() -> None:
    graph = model(PAST)
    assert plugins_of(lower(graph, "tensorrt-rtx").model) == []
    with pytest.raises(UsageError, match="TensorRT-RTX takes no plugins; --attention plugin needs --target tensorrt"):
        lower(graph, "tensorrt-rtx", "plugin")
