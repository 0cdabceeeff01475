"""What is proved to be nothing or to swallow a score, and the block that is one op because of it."""

import onnx_ir as ir
import pytest
from onnx import parser

from export.fuse import fuse
from export.fuse.masks.swallow import swallows
from export.graph import shapes

HUGE = 2.0**28
HEAD = '<ir_version: 10, opset_import: ["" : 18]>'


def mask(body: str) -> ir.Value:
    """Returns `m` of a graph over an int64 `keep`, a bool `open` and a float `x`."""
    constants = "float one = {1.0}, float half = {0.5}, float low = {-3e38}, float shallow = {-1e4}, float zero = {0.0}"
    text = f"{HEAD} g (int64[B,T] keep, bool[B,T] open, float[B,T] x) => (float[B,T] m) <{constants}> {{ {body} }}"
    model = ir.from_proto(parser.parse_model(text))
    shapes.infer(model)
    return model.graph.outputs[0]


@pytest.mark.parametrize(
    ("body", "is_so"),
    [
        ("f = Cast<to = 1>(keep) d = Sub(one, f) m = Mul(d, low)", True),
        ("f = Cast<to = 1>(open) d = Sub(one, f) e = Mul(low, d) m = Neg(e)", True),
        ("m = Where(open, zero, low)", True),
        ("f = Cast<to = 1>(keep) d = Sub(half, f) m = Mul(d, low)", False),
        ("d = Sub(one, x) m = Mul(d, low)", False),
        ("f = Cast<to = 1>(keep) d = Sub(one, f) m = Mul(d, shallow)", False),
        ("m = Where(open, zero, shallow)", False),
        ("m = Where(open, x, low)", False),
        ("m = Identity(x)", False),
    ],
)
def test_a_whole_number_times_a_huge_one_swallows(body: str, is_so: bool) -> None:
    assert swallows(mask(body), HUGE) is is_so


BLOCK = """
  (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v, bool[S,T] m, int64[B,1,1,T] keep) => (float[B,4,S,8] y)
<float hide = {-1e4}, float one = {1.0}, float half = {0.5}, float low = {-3e38}> {
  f = Cast<to = 1>(keep)
  d = Sub(ONE, f)
  padding = Mul(d, low)
  s = MatMul(q, k)
  causal = Where(m, s, hide)
  masked = Add(causal, padding)
  p = Softmax<axis = -1>(masked)
  y = MatMul(p, v)
}
"""


def test_a_shallow_fill_stands_beside_a_mask_that_swallows() -> None:
    (row,) = fuse(ir.from_proto(parser.parse_model(HEAD + "g" + BLOCK.replace("ONE", "one")))).attentions
    assert row.status == "fused" and row.verify is not None and row.verify.cases == 6


def test_it_stays_beside_one_that_may_be_as_deep() -> None:
    """Half a whole number times the lowest is deep too, but the proof is about whole ones."""
    (row,) = fuse(ir.from_proto(parser.parse_model(HEAD + "g" + BLOCK.replace("ONE", "half")))).attentions
    assert row.code == "K220"
