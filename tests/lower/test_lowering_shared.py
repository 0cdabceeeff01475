"""One tensor as Q or K of several attentions is found behind all that a builder sees through, and only there."""

import lowering_graphs as g
import pytest

from export.lower import lower
from export.lower.numbering import number

HALF = "float16[B,4,S,16]"
INPUTS = ", ".join(f"{HALF} {n}" for n in "pqklvw")


def scaled(before: str, one: str, two: str, scale: float = 0.25) -> list[str]:
    attention = f"Attention <scale: float = {scale}>"
    body = f"{before} [a] s = {attention} ({one}) [b] t = {attention} ({two}) y = Add (s, t)"
    steps = lower(g.model(INPUTS, body, f"{HALF} y"), "tensorrt-rtx").steps
    return [s.attention for s in steps if s.action == "scale query"]


@pytest.mark.parametrize(
    "copy",
    [
        "z = Identity (k)",
        "z = Cast <to: int = 10> (k)",
        "z = Transpose <perm: ints = [0, 1, 2, 3]> (k)",
        "c = Constant <value_ints: ints = [0, 0, 0, 0]> () z = Reshape (k, c)",
        "o = Constant <value_float: float = 1.0> () c = CastLike (o, k) z = Mul (k, c)",
        "c = Constant <value_ints: ints = [0, 0, 0, 0, 0, 0, 0, 0]> () z = Pad (k, c)",
    ],
)
def test_behind_a_copy(copy: str) -> None:
    assert scaled(copy, "q, k, v", "p, z, w") == ["a", "b"]


def test_behind_equal_operators() -> None:
    assert scaled("x = Relu (k) z = Relu (k)", "q, x, v", "p, z, w") == ["a", "b"]
    assert scaled("x = Relu (k) z = Exp (k)", "q, x, v", "p, z, w") == []
    swapped = "Transpose <perm: ints = [0, 1, 3, 2]>"
    assert scaled(f"x = {swapped} (k) y1 = {swapped} (x) z = Neg (y1)", "q, k, v", "p, z, w") == []


def test_a_turned_square_is_another_tensor() -> None:
    graph = g.model("float[4,4] x", "t = Transpose <perm: ints = [1, 0]> (x) y = Add (x, t)", "float[4,4] y")
    turned = graph.graph[0].outputs[0]
    turned.shape = graph.graph.inputs[0].shape
    numbers = number(graph)
    assert numbers[turned] != numbers[graph.graph.inputs[0]]


def test_inside_one_attention_and_not_through_v() -> None:
    assert scaled("", "q, q, v", "p, k, w") == ["a"]
    assert scaled("", "q, k, v", "p, l, v") == []
    assert scaled("", "q, k, k", "p, l, w") == []


def test_a_scale_of_one_needs_nothing() -> None:
    assert scaled("", "q, k, v", "q, l, w", scale=1.0) == []


def test_other_targets_do_not_mind() -> None:
    attention = "Attention <scale: float = 0.25>"
    body = f"[a] s = {attention} (q, k, v) [b] t = {attention} (q, l, w) y = Add (s, t)"
    assert lower(g.model(INPUTS, body, f"{HALF} y"), "ort").steps == ()
