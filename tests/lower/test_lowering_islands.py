"""An attention left in float32 in a half-precision graph is cast back, where the target's kernels need that."""

import numpy as np
import onnx_ir as ir
import pytest
from lowering_graphs import model

from engines.ort_runner import OrtRunner
from export.lower import lower

HALF = ir.DataType.FLOAT16
_INPUTS = "float16[B,4,S,16] q, float[B,4,T,16] k, float16[B,4,T,16] v"
_BODY = """
  [wide] q32 = Cast<to = 1>(q)
  [twice] q2 = Add(q32, q32)
  [value] v32 = Cast<to = 1>(v)
  [attn] o = Attention<scale: float = 0.25>(q2, k, v32)
  [back] y = Cast<to = 10>(o)
"""
_OUTPUTS = "float16[B,4,S,16] y"


def island(body: str = _BODY, outputs: str = _OUTPUTS) -> ir.Model:
    return model(_INPUTS, body, outputs)


def attention(graph: ir.Model) -> ir.Node:
    return next(node for node in graph.graph if node.op_type == "Attention")


@pytest.mark.parametrize("precision", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_queries_keys_and_values_are_cast_back(precision: ir.DataType) -> None:
    lowered = lower(island(), "tensorrt-rtx", precision=precision)
    node = attention(lowered.model)
    assert node.name == "attn"
    assert {v.dtype for v in (*node.inputs[:3], *node.outputs)} == {precision}
    assert (node.inputs[2].name == "v") is (precision == HALF), "a cast is undone where there is one"
    (step,) = [s for s in lowered.steps if s.action == "cast back"]
    assert step.attention == "attn"
    assert "was left in float32, for which TensorRT-RTX has no fused kernel" in step.why


def test_the_numbers_stay_within_half_precision_of_the_island() -> None:
    lowered = lower(island(), "tensorrt-rtx", precision=HALF).model
    generator = np.random.default_rng(0)
    feeds = {n: generator.standard_normal((2, 4, 5, 16)).astype("f4" if n == "k" else "f2") for n in "qkv"}
    before, after = (
        OrtRunner(ir.to_proto(m).SerializeToString()).run(feeds)["y"].astype(np.float64) for m in (island(), lowered)
    )
    assert 0 < np.abs(before - after).max() < 8 * np.finfo(np.float16).eps


@pytest.mark.parametrize(
    ("target", "precision"),
    [("ort", HALF), ("tensorrt-rtx", None), ("tensorrt-rtx", ir.DataType.FLOAT), ("onnx", HALF)],
)
def test_what_needs_no_cast_stays(target: str, precision: ir.DataType | None) -> None:
    lowered = lower(island(), target, precision=precision)
    assert attention(lowered.model).inputs[0].dtype in (ir.DataType.FLOAT, None)
    assert not [s for s in lowered.steps if s.action == "cast back"]


def test_scores_that_are_an_output_keep_their_type() -> None:
    body = _BODY.replace("o = Attention", "o, , , s = Attention").replace("0.25>", "0.25, qk_matmul_output_mode = 3>")
    lowered = lower(island(body, f"{_OUTPUTS}, float[B,4,S,T] s"), "tensorrt-rtx", precision=HALF)
    assert not [s for s in lowered.steps if s.action == "cast back"]
