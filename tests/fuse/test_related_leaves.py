"""An op may read a tensor where the graph before read what it made of it: then verification computes the one."""

import onnx_ir as ir
import pytest
from text_graphs import parse

from export.fuse import engine, fuse

SHARED = """
g (float[B,S,8] x) => (float[B,S,8] y) <float c = {3.0}> {
  q = Mul(x, c)
  kt = Transpose<perm = [0, 2, 1]>(q)
  s = MatMul(q, kt)
  p = Softmax<axis = -1>(s)
  y = MatMul(p, x)
}"""
"""The factor goes into the scale once: the op's query is x, its key 3 x, and the graph's product had 3 x twice."""


def test_one_tensor_as_query_key_and_value_with_a_factor() -> None:
    result = fuse(parse(SHARED))
    assert [row.status for row in result.attentions] == ["fused"], result.attentions
    assert result.attentions[0].verify is not None


def test_a_wrong_scale_is_still_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine.emit

    def wrong(*args: object) -> object:
        made = right(*args)  # type: ignore[arg-type]
        node = made.node
        node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].as_float() * 1.01)
        return made

    monkeypatch.setattr(engine, "emit", wrong)
    (row,) = fuse(parse(SHARED)).attentions
    assert (row.status, row.code) == ("kept", "V907")
