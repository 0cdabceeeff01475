"""What the shape inference library does not know or takes wrong, told to it once."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx_ir as ir

_NAMELESS = re.compile(r"_d\d+")
"""How the library calls a dimension that it does not know."""


@cache
def teach() -> None:
    """Adds to the library, or corrects in it, each of the lessons below."""
    import onnx_ir._symbolic_shapes as onnx_parser
    import onnx_shape_inference._symbolic_shapes as parser
    import sympy
    from onnx_shape_inference import registry

    # Its own arithmetic on a strided Slice writes a name that its parsers then refuse.
    for table in (getattr(onnx_parser, "_ALLOWED_FUNCTIONS", {}), getattr(parser, "ALLOWED_FUNCTIONS", {})):
        table.setdefault("ceiling", sympy.ceiling)
    registry.collect()
    registry.register("", "ConstantOfShape", since_version=10)(_constant_of_shape)
    registry.register("", "Constant", since_version=2)(_constant(registry.get("", "Constant", version=13)))
    registry.register("", "Expand", since_version=8)(_expand(registry.get("", "Expand", version=13)))
    registry.register("", "Slice", since_version=10)(_slice(registry.get("", "Slice", version=13)))
    _broadcast()


def _constant_of_shape(context: Any, node: ir.Node) -> None:
    """A ConstantOfShape whose shape is computed (a causal mask's `ones(n, n)`)."""
    shape, value = node.inputs[0], node.attributes.get("value")
    known = context.get_symbolic_value(shape) if shape is not None else None
    dtype = value.as_tensor().dtype if value is not None else ir.DataType.FLOAT
    constant = ir.convenience.get_const_tensor(shape) if shape is not None else None
    if constant is not None:
        known = [int(x) for x in constant.numpy().reshape(-1)]
    context.set_shape_and_dtype(node.outputs[0], None if known is None else ir.Shape(list(known)), dtype)


def _constant(infer: Any) -> Any:
    """A Constant, of which there are more than of anything else, is typed before the library comes to it."""

    def infer_untyped(context: Any, node: ir.Node) -> None:
        if infer is not None and (node.outputs[0].const_value is None or node.outputs[0].shape is None):
            infer(context, node)

    return infer_untyped


def _expand(infer: Any) -> Any:
    """An Expand of what has no known shape is as long as was asked for, but not where that is 1: the tensor decides."""

    def infer_known(context: Any, node: ir.Node) -> None:
        infer(context, node)
        data, output = node.inputs[0], node.outputs[0]
        if data is not None and data.shape is None and output.shape is not None:
            output.shape = ir.Shape([ir.SymbolicDim(None) if d == 1 else d for d in output.shape])

    return infer_known


def _slice(infer: Any) -> Any:
    """A Slice from or to what is not known leaves the axes alone that it does not name."""

    def infer_named_axes(context: Any, node: ir.Node) -> None:
        data, axes = node.inputs[0], _integers(node.inputs[3] if len(node.inputs) > 3 else None)
        unknown = _integers(node.inputs[1]) is None or not _is_known(context, node.inputs[2])
        if data is None or data.shape is None or axes is None or not unknown:
            infer(context, node)
            return
        cut = {axis % len(data.shape) for axis in axes}
        dims = [context.new_symbolic_dim() if at in cut else dim for at, dim in enumerate(data.shape)]
        context.set_shape_and_dtype(node.outputs[0], ir.Shape(dims), data.dtype)

    return infer_named_axes


def _integers(value: ir.Value | None) -> list[int] | None:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if constant is None else [int(x) for x in constant.numpy().reshape(-1)]


def _is_known(context: Any, value: ir.Value | None) -> bool:
    return _integers(value) is not None or (value is not None and context.get_symbolic_value(value) is not None)


def _broadcast() -> None:
    """Of two different names on one axis the library takes the first; one without a meaning may just as well be 1."""
    import onnx_shape_inference._broadcast as library

    original: Callable[..., int | ir.SymbolicDim | None] = library._broadcast_dim

    def broadcast_dim(one: int | ir.SymbolicDim, two: int | ir.SymbolicDim) -> int | ir.SymbolicDim | None:
        if isinstance(one, ir.SymbolicDim) and isinstance(two, ir.SymbolicDim) and _NAMELESS.fullmatch(one.value or ""):
            return two if two.value is not None else one
        return original(one, two)

    library._broadcast_dim = broadcast_dim
