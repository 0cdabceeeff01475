"""Verification computes what sizes alone decide: drawn at random, the ends of a Range would be sizes no run has."""

from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from export.fuse import fuse
from export.fuse.proof import adversary
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


RELATIVE = """
<ir_version: 10, opset_import: ["" : 18]>
relative (float[batch, heads, length, 16] q, float[batch, heads, length, 16] k, float[batch, heads, length, 16] v,
          float[batch, heads, length, 16] features, float[length, 16] table) => (float[batch, heads, length, 16] y)
<int64[1] zero = {0}, int64[1] two = {2}>
{
  shape = Shape(q)
  whole = Gather(shape, two)
  inexact = Cast<to = 1>(whole)
  logarithm = Log(inexact)
  about = Exp(logarithm)
  rounded = Round(about)
  end = Cast<to = 7>(rounded)
  rows = Slice(table, zero, end, zero)
  columns = Transpose<perm = [1, 0]>(rows)
  positive = Abs(features)
  bent = MatMul(positive, columns)
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  scores = MatMul(q, kt)
  biased = Add(scores, bent)
  weights = Softmax<axis = -1>(biased)
  y = MatMul(weights, v)
}
"""


def test_what_a_bias_is_a_product_of_is_drawn_as_features_not_as_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features drawn as masks are, the scores would be 1e10, and the rounding of such scores is no evidence."""
    drawn = {}
    draw = adversary.draw

    def seen(value: ir.Value, shape: tuple[int, ...], trial: adversary.Trial, deep: float | None, *rest: Any) -> Any:
        drawn.setdefault(str(value.name), deep)
        return draw(value, shape, trial, deep, *rest)

    monkeypatch.setattr(adversary, "draw", seen)
    (row,) = fuse(ir.from_proto(parser.parse_model(RELATIVE))).attentions
    assert row.status == "fused"
    assert drawn["positive"] is None and drawn["table"] is None
