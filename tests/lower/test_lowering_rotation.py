"""RoPE on Q and K becomes part of the plugin node exactly where the operator says the same, and nowhere else."""

import lowering_graphs as g
import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from export.lower import for_ort_check, lower
from plugins import key_rotation

SHORT, LONG = {"S": 64}, {"S": 4096}
PAIR = "a = RotaryEmbedding <{0}> (q, c, s{1}) b = RotaryEmbedding <{0}> (k, c, s{1})"
HALVES = PAIR.format("interleaved: int = 0", "")
ROWS, BY_POSITION = "float[1,S,{0}] c, float[1,S,{0}] s", "float[32,{0}] c, float[32,{0}] s, int64[1,S] p"


def rotated(
    tables: str = ROWS.format(8),
    before: str = HALVES,
    said: str = "is_causal: int = 1",
    more: str = "",
    dtype: str = "float",
    shown: str = "",
) -> ir.Model:
    inputs = f"{dtype}[B,4,S,16] q, {dtype}[B,2,S,16] k, {dtype}[B,2,S,16] v, {tables}{more}"
    operands = "(a, b, v, , pk, pv)" if "pk" in more else "(a, b, v)"
    body = f"{before} [attn] y = Attention <softcap: float = 2.0, {said}> {operands}"
    return g.model(inputs, body, f"{dtype}[B,4,S,16] y{shown}")


def attributes(lowered: ir.Model) -> dict[str, object]:
    (node,) = (n for n in lowered.graph if n.domain == "attnproof")
    return {name: a.value for name, a in node.attributes.items()}


def compare(graph: ir.Model, lowered: ir.Model, tolerance: float) -> None:
    given = g.feeds(graph)
    given |= {"c": np.cos(given["c"]).astype(given["c"].dtype), "s": np.sin(given["s"]).astype(given["s"].dtype)}
    wanted = onnx.reference.ReferenceEvaluator(ir.to_proto(graph)).run(None, given)[0]
    found = g.run_ort(for_ort_check(lowered), given)[0]
    np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), atol=tolerance)


EXACT = {
    "rows": rotated(),
    "positions": rotated(BY_POSITION.format(8), PAIR.format("interleaved: int = 0", ", p")),
    "interleaved": rotated(before=PAIR.format("interleaved: int = 1", "")),
    "partial": rotated(ROWS.format(4), PAIR.format("rotary_embedding_dim: int = 8", "")),
    "repeated": rotated(
        before="""h = Shape <start: int = 0, end: int = 1> (q) o = Constant <value_ints: ints = [1, 1]> ()
        n = Concat <axis: int = 0> (h, o) d = Expand (c, n) e = Expand (s, n)
        a = RotaryEmbedding (q, d, e) b = RotaryEmbedding (k, d, e)"""
    ),
    "not-causal": rotated(said="scale: float = 0.3"),
}


@pytest.mark.parametrize("sizes", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("case", EXACT)
def test_what_the_operator_says_exactly_becomes_its_own(case: str, sizes: dict[str, int]) -> None:
    lowered = lower(EXACT[case], "tensorrt", usual=sizes)
    found, outside = attributes(lowered.model), g.ops(lowered.model).count("RotaryEmbedding")
    assert found["rotary_embedding_dim"] == (8 if case == "partial" else 16)
    assert found["interleaved"] == int(case == "interleaved")
    assert (found["rotate_key"], outside) == ((1, 0) if sizes is SHORT else (0, 1))
    assert "rotation in the plugin" in [s.action for s in lowered.steps]
    compare(rotated() if case == "repeated" else EXACT[case], lowered.model, 2e-5)


@pytest.mark.parametrize("tables", ["float", "float16"])
def test_half_precision_is_rotated_in_float32_by_the_kernel(tables: str) -> None:
    graph = rotated(ROWS.format(8).replace("float", tables), dtype="float16")
    lowered = lower(graph, "tensorrt", usual=SHORT).model
    assert attributes(lowered)["rotate_key"] == 1
    assert "RotaryEmbedding" not in g.ops(lowered)
    node = next(n for n in lowered.graph if n.domain == "attnproof")
    assert [v.dtype for v in node.inputs if v is not None][3:5] == [ir.DataType.FLOAT] * 2
    compare(graph, lowered, 4e-3)


def test_a_length_that_is_not_known_rotates_keys_before() -> None:
    most = key_rotation.crossover().keys
    for usual, inside in (({}, 0), ({"S": most}, 1), ({"S": most + 1}, 0)):
        assert attributes(lower(EXACT["rows"], "tensorrt", usual=usual).model)["rotate_key"] == inside


def test_keys_with_other_angles_are_rotated_before() -> None:
    graph = rotated(before="w = Neg (s) a = RotaryEmbedding (q, c, s) b = RotaryEmbedding (k, c, w)")
    lowered = lower(graph, "tensorrt", usual=SHORT).model
    assert (attributes(lowered)["rotary_embedding_dim"], attributes(lowered)["rotate_key"]) == (16, 0)
    compare(graph, lowered, 2e-5)


OUTSIDE = {
    "angles-of-each-row": rotated(ROWS.format(8).replace("[1", "[B")),
    "causal-after-a-cache": rotated(more=", float[B,2,P,16] pk, float[B,2,P,16] pv"),
    "read-elsewhere": rotated(before=f"{HALVES} z = Neg (a)", shown=", float[B,4,S,16] z"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_the_operator_cannot_say_stays_outside(case: str) -> None:
    lowered = lower(OUTSIDE[case], "tensorrt", usual=SHORT)
    assert attributes(lowered.model)["rotary_embedding_dim"] == 0
    assert g.ops(lowered.model).count("RotaryEmbedding") == 2
    assert "rotation in the plugin" not in [s.action for s in lowered.steps]
