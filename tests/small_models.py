"""Small ONNX files and factories that the command-line tests are about; each is written where the test says."""

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser

HEADS, SIZE = 2, 8
WIDTH = HEADS * SIZE

_ATTENTION = """
  q0 = MatMul(x, wq)
  k0 = MatMul(x, wk)
  v0 = MatMul(x, wv)
  q1 = Reshape(q0, split)
  k1 = Reshape(k0, split)
  v1 = Reshape(v0, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q1)
  k = Transpose<perm = [0, 2, 3, 1]>(k1)
  v = Transpose<perm = [0, 2, 1, 3]>(v1)
  s0 = MatMul(q, k)
  s = Mul(s0, scale)
  p = Softmax<axis = -1>(s)
  o0 = MatMul(p, v)
  o1 = Transpose<perm = [0, 2, 1, 3]>(o0)
  o = Reshape(o1, merge)
"""

# Softmax over the queries: no Attention op can say that.
_SLOT_ATTENTION = """
  r0 = MatMul(o, wq)
  r1 = Transpose<perm = [0, 2, 1]>(r0)
  t0 = MatMul(o, r1)
  t = Softmax<axis = 1>(t0)
  y = MatMul(t, o)
"""


def attention(dtype: str = "float32", *, kept: bool = False, extra: str = "", opset: int = 18) -> onnx.ModelProto:
    """Returns a self-attention [batch, length, 16] with two heads, `kept` followed by one that cannot be one op."""
    element = {"float32": "float", "float16": "float16"}[dtype]
    body = _ATTENTION + (_SLOT_ATTENTION if kept else "  y = Identity(o)\n") + extra
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}, "custom": 1], producer_name: "tests">\n'
        f"block ({element}[batch, length, {WIDTH}] x) => ({element}[batch, length, {WIDTH}] y) {{ {body} }}"
    )
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((WIDTH, WIDTH)).astype(dtype) / 3 for name in ("wq", "wk", "wv")}
    weights |= {"scale": np.asarray(SIZE**-0.5, dtype), "split": np.array([0, 0, HEADS, SIZE])}
    weights |= {"merge": np.array([0, 0, WIDTH])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Writes the model and returns its path."""
    onnx.save(model, path)
    return path


FACTORY = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, s, e = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        p = torch.softmax(q @ k.transpose(-2, -1) * (e // self.heads) ** -0.5, dim=-1)
        return self.out((p @ v).transpose(1, 2).reshape(b, s, e))


def make():
    return Block(), (torch.randn(2, 7, 16),)
"""
