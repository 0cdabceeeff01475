"""What the graph proves about a mask's numbers."""

import lowering_graphs as g
import pytest

from export.lower.bounds import UNKNOWN, Bound, bound

LOW = 65536.0


def of(body: str, inputs: str = "bool[2,3] c, float[2,3] x") -> Bound:
    graph = g.model(inputs, body, "float[2,3] m", opset=23)
    return bound(graph.graph.outputs[0])


CONST = "z = Constant <value_float: float = 0.0> () f = Constant <value_float: float = -65536.0> () "


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("m = Identity (x)", UNKNOWN),
        (CONST + "m = Where (c, z, f)", Bound(LOW, False)),
        (CONST + "t = Where (c, z, f) m = Add (t, f)", Bound(2 * LOW, False)),
        (CONST + "t = Where (c, z, f) m = Mul (t, z)", Bound(0.0, False)),
        (
            CONST + "t = Where (c, z, f) s = Constant <value_float: float = 2.0> () m = Div (t, s)",
            Bound(LOW / 2, False),
        ),
        (CONST + "t = Where (c, z, f) m = Div (t, z)", UNKNOWN),
        (CONST + "t = Where (c, x, f) m = Identity (t)", UNKNOWN),
        ("m = Cast <to: int = 1> (c)", Bound(1.0, False)),
        ("b = Constant <value_float: float = -1e9> () h = Cast <to: int = 10> (b) m = Identity (h)", Bound(1e9, True)),
        ("m = Log (x)", UNKNOWN),
        ("m = Softmax (x)", Bound(1e4, False)),
        ("s = Shape (x) m = ConstantOfShape <value = float[1] {-7}> (s)", Bound(7.0, False)),
    ],
)
def test_bounds(body: str, wanted: Bound) -> None:
    assert of(body) == wanted


def test_minus_infinity_is_told_from_large_numbers() -> None:
    found = of(
        "z = Constant <value_float: float = -inf> () o = Constant <value_float: float = 3.0> () m = Where (c, z, o)"
    )
    assert found == Bound(3.0, True)


def test_a_long_chain_of_sums_is_judged_once_a_node() -> None:
    chain = " ".join(f"t{i + 1} = Add (t{i}, t{i})" for i in range(40))
    found = of(f"t0 = Constant <value_float: float = 1.0> () {chain} m = Identity (t40)")
    assert found == Bound(2.0**40, False)
