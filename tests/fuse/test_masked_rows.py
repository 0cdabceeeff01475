"""A query row that sees no key: what it gave before, what it gives now, and what the row of the report says."""

import numpy as np
import pytest
from derived import is_mean, truth, within
from text_graphs import parse, session

from export.fuse import Options, fuse

MEAN, ZERO, NAN = "mean", "zero", "nan"
SPELLINGS = {
    # name: (nodes between the product s and the weights w, before, kept, asked to be zero)
    "fill -inf": ("m1 = Where(m, s, inf)\n w = Softmax<axis = -1>(m1)", NAN, ZERO, ZERO),
    "fill -inf, guarded": (
        "m1 = Where(m, s, inf)\n p = Softmax<axis = -1>(m1)\n n = IsNaN(p)\n w = Where(n, zero, p)", ZERO, ZERO, ZERO,
    ),
    "fill -1e9": ("m1 = Where(m, s, big)\n w = Softmax<axis = -1>(m1)", MEAN, MEAN, ZERO),
    "fill finfo.min": ("m1 = Where(m, s, low)\n w = Softmax<axis = -1>(m1)", MEAN, MEAN, ZERO),
    "fill -1e9, zeroed again": (
        "m1 = Where(m, s, big)\n p = Softmax<axis = -1>(m1)\n w = Where(m, p, zero)", ZERO, ZERO, ZERO,
    ),
    "fill -inf, zeroed again": (
        "m1 = Where(m, s, inf)\n p = Softmax<axis = -1>(m1)\n w = Where(m, p, zero)", ZERO, ZERO, ZERO,
    ),
    "fill -1e9, then a bias": (
        "m1 = Where(m, s, big)\n m2 = Add(m1, b)\n w = Softmax<axis = -1>(m2)", MEAN, MEAN, ZERO,
    ),
    "a bias, then fill -1e9": (
        "m1 = Add(s, b)\n m2 = Where(m, m1, big)\n w = Softmax<axis = -1>(m2)", MEAN, MEAN, ZERO,
    ),
    "add where(keep, 0, -inf)": (
        "t = Where(m, zero, inf)\n m1 = Add(s, t)\n w = Softmax<axis = -1>(m1)", NAN, ZERO, ZERO,
    ),
    "add where(keep, 0, -1e9)": (
        "t = Where(m, zero, big)\n m1 = Add(s, t)\n w = Softmax<axis = -1>(m1)", MEAN, MEAN, MEAN,
    ),
    "add (1 - keep) * -1e9": (
        "f = Cast<to = 1>(m)\n f1 = Sub(one, f)\n t = Mul(f1, big)\n m1 = Add(s, t)\n w = Softmax<axis = -1>(m1)",
        MEAN, MEAN, MEAN,
    ),
}  # fmt: skip

GRAPH = """
g (float[B,2,S,8] q, float[B,2,8,T] k, float[B,2,T,8] v, bool[B,1,S,T] m, float[2,1,1] b) => (float[B,2,S,8] y)
<float zero = {0.0}, float one = {1.0}, float inf = {-inf}, float big = {-1e9}, float low = {-3.4028235e38}> {
  s = MatMul(q, k)
  %s
  y = MatMul(w, v)
}"""


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    drawn = {
        "q": rng.standard_normal((2, 2, 3, 8)), "k": rng.standard_normal((2, 2, 8, 5)),
        "v": rng.standard_normal((2, 2, 5, 8)), "b": np.ones((2, 1, 1)),
    }  # fmt: skip
    keep = rng.random((2, 1, 3, 5)) > 0.4
    keep[0, :, 1] = False  # the row without keys

    keep[0, :, 1] = False
    keep[1, :, :, 0] = True
    return {name: data.astype(np.float32) for name, data in drawn.items()} | {"m": keep}


def meaning(output: np.ndarray, feeds: dict[str, np.ndarray]) -> str:
    row = output[0, :, 1]
    if np.isnan(row).all():
        return NAN
    if (row == 0).all():
        return ZERO
    assert is_mean(row, feeds["v"][0]).all()
    return MEAN


@pytest.mark.parametrize("policy", ["keep", "zero"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_row_without_keys(name: str, policy: str, feeds: dict[str, np.ndarray]) -> None:
    nodes, before, kept, zeroed = SPELLINGS[name]
    model = parse(GRAPH % nodes)
    result = fuse(model, Options(masked_rows=policy))
    (row,) = result.attentions
    assert row.status == "fused", row.reason
    (old,), (new,) = session(model)(feeds), session(result.model)(feeds)
    assert meaning(old, feeds) == before
    now = meaning(new, feeds)
    assert now == (zeroed if policy == "zero" else kept)
    assert row.masked_rows == ("keep" if now == before else "zero")
    assert result.masked_rows == row.masked_rows
    seen = np.ones_like(old, dtype=bool)
    seen[0, :, 1] = False
    (want,) = truth(model, feeds)
    assert within(old, want)[seen].all() and within(new, want)[seen].all()


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ("w = Softmax<axis = -1>(s)", "Softmax attention became one op."),
        (SPELLINGS["fill -inf"][0], "a row without keys gives zero (NaN before)."),
        (SPELLINGS["fill -1e9"][0], "a row without keys gives mean of V."),
        (SPELLINGS["fill -1e9, zeroed again"][0], "a row without keys gives zero."),
        (SPELLINGS["add (1 - keep) * -1e9"][0], "a row without keys gives what the float mask says."),
    ],
)
def test_the_reason_says_it(nodes: str, sentence: str) -> None:
    (row,) = fuse(parse(GRAPH % nodes), Options(verify=False)).attentions
    assert row.reason.endswith(sentence), row.reason


def test_the_reason_says_what_was_asked_for() -> None:
    (row,) = fuse(parse(GRAPH % SPELLINGS["fill -1e9"][0]), Options(verify=False, masked_rows="zero")).attentions
    assert row.reason.endswith("a row without keys gives zero (mean of V before)."), row.reason
