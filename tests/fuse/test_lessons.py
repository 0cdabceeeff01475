"""What the shape inference library is told: each lesson, on a graph that shows it."""

import onnx_ir as ir
import pytest
from onnx import parser

from export.graph import shapes
from export.graph.values import dims


def inferred(inputs: str, body: str, constants: str = "") -> dict[str, ir.Value]:
    """Returns the values of a graph by name, with their shapes inferred."""
    text = f'<ir_version: 10, opset_import: ["" : 18]> lesson ({inputs}) => (y) <{constants}> {{ {body} }}'
    model = ir.from_proto(parser.parse_model(text))
    shapes.infer(model)
    return {str(v.name): v for node in model.graph for v in node.outputs}


def test_a_ceiling_is_read_as_it_is_written() -> None:
    """sympy's simplest form of a strided Slice's length is a name that the library does not read by itself."""
    model = ir.from_proto(
        parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 18]> g (float[n, m] x) => (y) { y = Concat<axis = 1>(x, x) }'
        )
    )
    model.graph.inputs[0].shape = ir.Shape(["n", "ceiling(length/2)"])
    shapes.infer(model)
    assert dims(model.graph.outputs[0]) == ("n", "2*ceiling(length/2)")


def test_a_slice_to_an_unknown_end_leaves_the_other_axes_alone() -> None:
    body = "y = Slice(x, from, to, axes)"
    found = inferred("float[batch, heads, 64, 64] x, int64[1] to", body, "int64[1] from = {0}, int64[1] axes = {-2}")
    batch, heads, cut, kept = dims(found["y"]) or ()
    assert (batch, heads, kept) == ("batch", "heads", 64) and cut != 64


@pytest.mark.parametrize("order", ["cut, x", "x, cut"])
def test_a_name_with_a_meaning_outlasts_one_without(order: str) -> None:
    """`cut` has an axis that nobody named, which may be 1; the sum is as long as x there."""
    body = f"cut = Slice(table, from, to, axes)  y = Add({order})"
    found = inferred("float[length] x, float[64] table, int64[1] to", body, "int64[1] from = {0}, int64[1] axes = {0}")
    assert dims(found["y"]) == ("length",)


def test_an_expand_of_what_is_not_known_is_not_1_because_1_was_asked_for() -> None:
    """The library takes the shape asked for, where a 1 says no more than that the tensor decides."""
    found = inferred("float x", "u = Foo.Unknown(x) y = Expand(u, wide)", "int64[2] wide = {1, 3}")
    shape = found["y"].shape
    assert shape is not None and shape[0] != 1 and shape[1] == 3
    known = inferred("float[B, 3] x", "y = Expand(x, wide)", "int64[2] wide = {1, 3}")
    assert dims(known["y"]) == ("B", 3)
