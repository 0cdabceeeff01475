"""RotaryEmbedding: tables for every batch row, and one type."""

import lowering_graphs as g
import numpy as np
import onnx_ir as ir
import pytest

from export.lower import for_ort_check, lower

X = "float[B,4,S,16] x"


def rotary(tables: str, positions: str = "", x: str = X, attributes: str = "interleaved: int = 0") -> ir.Model:
    inputs = f"{x}, {tables} c, {tables} s" + (f", {positions} p" if positions else "")
    body = f"[rope] y = RotaryEmbedding <{attributes}> (x, c, s{', p' if positions else ''})"
    return g.model(inputs, body, x.replace(" x", " y"), opset=23)


def rotated(graph: ir.Model, given: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the rotation by the operator's text, in float64: halves or pairs (x0, x1) -> (cx0 - sx1, sx0 + cx1)."""
    x, c, s = (given[n].astype(np.float64) for n in ("x", "c", "s"))
    if "p" in given:
        c, s = c[given["p"]], s[given["p"]]
    c, s = c[:, None], s[:, None]
    if g.node(graph, "RotaryEmbedding").attributes["interleaved"].as_int():
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([c * a - s * b, s * a + c * b], -1).reshape(x.shape)
    a, b = np.split(x, 2, -1)
    return np.concatenate([c * a - s * b, s * a + c * b], -1)


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("tables", ["[B,S,8]", "[1,S,8]"])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_tables_for_every_batch_row(target: str, tables: str, interleaved: int) -> None:
    graph = rotary(f"float{tables}", attributes=f"interleaved: int = {interleaved}")
    lowered = lower(graph, target)
    assert [s.action for s in lowered.steps] == (["expand rotary batch"] if tables[1] == "1" else [])
    g.check(for_ort_check(lowered.model))
    given = g.feeds(graph)
    np.testing.assert_allclose(
        g.run_ort(for_ort_check(lowered.model), given)[0], rotated(graph, given), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx"])
def test_positions_for_every_batch_row(target: str) -> None:
    graph = rotary("float[9,8]", "int64[1,S]")
    lowered = lower(graph, target).model
    given = g.feeds(graph)
    np.testing.assert_allclose(g.run_ort(lowered, given)[0], rotated(graph, given), rtol=1e-6, atol=1e-6)


def test_a_batch_of_one_needs_nothing() -> None:
    assert lower(rotary("float[1,S,8]", x="float[1,4,S,16] x"), "ort").steps == ()


def test_the_standard_itself_is_left_alone() -> None:
    assert lower(rotary("float[1,S,8]"), "onnx").steps == ()


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx"])
def test_tables_of_a_wider_type_rotate_in_it(target: str) -> None:
    graph = rotary("float[1,S,8]", x="float16[B,4,S,16] x")
    lowered = lower(graph, target)
    assert [s.action for s in lowered.steps] == ["expand rotary batch", "rotate in one type"]
    node = g.node(lowered.model, "RotaryEmbedding")
    assert node.name == "rope"
    assert {v.dtype for v in node.inputs if v is not None} == {ir.DataType.FLOAT}
    assert lowered.model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    g.check(lowered.model)
    given = g.feeds(graph)
    np.testing.assert_allclose(
        g.run_ort(lowered.model, given)[0].astype(np.float64), rotated(graph, given), rtol=1e-3, atol=1e-4
    )


def test_tables_of_a_narrower_type_are_cast() -> None:
    graph = rotary("float16[B,S,8]")
    lowered = lower(graph, "ort").model
    given = g.feeds(graph)
    np.testing.assert_allclose(g.run_ort(lowered, given)[0], rotated(graph, given), rtol=1e-6, atol=1e-6)
