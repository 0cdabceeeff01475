"""Verification computes what sizes alone decide: drawn at random, the ends of a Range would be sizes no run has."""

import onnx_ir as ir

from export.fuse import fuse
from export.fuse.proof.region import settled
from export.graph.shapes import infer

GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
relative (float[batch, heads, length, 16] q, float[batch, heads, length, 16] k, float[batch, heads, length, 16] v)
  => (float[batch, heads, length, 16] y)
<float zero = {0.0}, float one = {1.0}, int64 two = {2}, float slope = {0.1}>
{
  shape = Shape(q)
  n = Gather(shape, two)
  size = Cast<to = 1>(n)
  positions = Range(zero, size, one)
  columns = Unsqueeze(positions, two_axes)
  distance = Sub(positions, columns)
  bias = Mul(distance, slope)
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  scores = MatMul(q, kt)
  biased = Add(scores, bias)
  weights = Softmax<axis = -1>(biased)
  y = MatMul(weights, v)
}
"""


def model() -> ir.Model:
    import onnx
    from onnx import parser

    text = GRAPH.replace("float slope = {0.1}", "float slope = {0.1}, int64[1] two_axes = {1}")
    made = parser.parse_model(text)
    onnx.checker.check_model(made)
    return ir.from_proto(made)


def test_numbers_and_vectors_from_sizes_are_settled_and_tables_are_not() -> None:
    inferred = model()
    infer(inferred)
    names = settled(inferred)
    assert {"n", "size", "positions", "shape"} <= names
    assert not {"distance", "bias", "columns", "kt", "scores", "weights"} & names


def test_a_range_to_a_size_is_checked_at_that_size() -> None:
    (row,) = fuse(model()).attentions
    assert row.status == "fused" and row.verify is not None and row.verify.cases == 6
