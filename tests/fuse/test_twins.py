"""Blocks that are the same computation are run once; blocks that differ in anything that counts are each run."""

import pytest
from text_graphs import parse

from export.fuse import fuse
from export.fuse.proof.compare import Comparison
from export.graph.values import Refusal

HEAD = "g (float[B,2,S,4] q, float[B,2,T,4] k, float[B,2,T,4] v, float[B,2,U,4] k2) => (float[B,2,S,4] y)"
CONSTANTS = "<float c = {0.5}, float d = {0.25}, float deep = {-inf}, float shallow = {-1e9}>"
FIRST = """
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  s = MatMul(q, kt)
  t = Mul(s, c)
  p = Softmax<axis = -1>(t)
  a = MatMul(p, v)
"""
SECONDS = {
    "the same again": ("lt = Transpose<perm = [0, 1, 3, 2]>(k) r = MatMul(a, lt) u = Mul(r, c)", 1),
    "the factors exchanged": ("lt = Transpose<perm = [0, 1, 3, 2]>(k) r = MatMul(a, lt) u = Mul(c, r)", 2),
    "another constant": ("lt = Transpose<perm = [0, 1, 3, 2]>(k) r = MatMul(a, lt) u = Mul(r, d)", 2),
    "another operator": ("lt = Transpose<perm = [0, 1, 3, 2]>(k) r = MatMul(a, lt) u = Div(r, c)", 2),
    "one tensor twice": ("lt = Transpose<perm = [0, 1, 3, 2]>(v) r = MatMul(a, lt) u = Mul(r, c)", 2),
}


@pytest.mark.parametrize("name", SECONDS)
def test_blocks_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, expected = SECONDS[name]
    ran = []
    monkeypatch.setattr(Comparison, "run", lambda self, bound, run=Comparison.run: (ran.append(1), run(self, bound))[1])
    model = parse(f"{HEAD} {CONSTANTS} {{ {FIRST} {body} z = Softmax<axis = -1>(u) y = MatMul(z, v) }}")
    result = fuse(model)
    assert result.summary.fused == 2
    assert all(row.verify is not None and row.verify.cases > 3 for row in result.attentions)
    assert len(ran) == expected


def test_a_block_that_fails_does_so_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict is shared only where it is good: each wrong block is named in its own sentence."""

    def wrong(self: Comparison, bound: object) -> None:
        raise Refusal("V907", f"'{self.name}' differs.")

    monkeypatch.setattr(Comparison, "run", wrong)
    body = SECONDS["the same again"][0]
    model = parse(f"{HEAD} {CONSTANTS} {{ {FIRST} {body} z = Softmax<axis = -1>(u) y = MatMul(z, v) }}")
    rows = fuse(model).attentions
    assert [(row.status, row.code) for row in rows] == [("kept", "V907"), ("kept", "V907")]
    assert [row.name in row.reason for row in rows] == [True, True]
