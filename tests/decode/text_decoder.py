"""A small decoder as ONNX text: learned positions, and a bias by distance for each head."""

import numpy as np
import onnx_ir as ir

LONGEST = 24
"""Positions in its table."""

TEXT = """<ir_version: 10, opset_import: ["": 23]>
g (float[B, L, 16] x, float[24, 16] table, float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[2, 1, 1] slope)
=> (float[B, L, 16] y) {
  zero = Constant<value = int64[1] {0}>()
  first = Constant<value = int64 {0}>()
  one = Constant<value = int64 {1}>()
  axes = Constant<value = int64[1] {0}>()
  down = Constant<value = int64[1] {1}>()
  split = Constant<value = int64[4] {0, 0, 2, 8}>()
  flat = Constant<value = int64[3] {0, 0, 16}>()
  length = Shape<start = 1, end = 2>(x)
  here = Slice(table, zero, length, axes)
  h = Add(x, here)
  qm = MatMul(h, wq)
  q3 = Reshape(qm, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q3)
  km = MatMul(h, wk)
  k3 = Reshape(km, split)
  k = Transpose<perm = [0, 2, 1, 3]>(k3)
  vm = MatMul(h, wv)
  v3 = Reshape(vm, split)
  v = Transpose<perm = [0, 2, 1, 3]>(v3)
  count = Squeeze(length)
  columns = Range(first, count, one)
  rows = Unsqueeze(columns, down)
  distance = Sub(columns, rows)
  far = Cast<to = 1>(distance)
  bias = Mul(far, slope)
  a = Attention<is_causal = 1, scale = 0.5>(q, k, v, bias)
  a3 = Transpose<perm = [0, 2, 1, 3]>(a)
  y = Reshape(a3, flat)
}"""


def model(text: str = TEXT) -> ir.Model:
    """Returns the decoder with random weights."""
    made = ir.from_onnx_text(text)
    draw = np.random.default_rng(0)
    for value in [v for v in made.graph.inputs if v.name != "x"]:
        data = draw.standard_normal([int(d) for d in value.shape or ()]).astype(np.float32) * 0.3
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(data, name=value.name)
        made.graph.register_initializer(value)
    return made
