"""Writes functions of a model out where they are called."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from export.graph.opset import raise_nodes
from export.graph.values import Refusal


def inline(model: ir.Model, wanted: Callable[[ir.Function], bool] = lambda _: True) -> int:
    """Inlines every function that is wanted and can be, in place; returns how many are gone.

    A function may mean an older opset than the model: its nodes are raised first. One that means a later one, another
    version of some operator domain, or has an attribute that is a graph stays a function.
    """
    count = len(model.functions)
    if count:
        keys = {key for key, function in model.functions.items() if wanted(function) and _fits(function, model)}
        common.InlinePass(criteria=lambda function: function.identifier() in keys)(model)
    return count - len(model.functions)


def _fits(function: ir.Function, model: ir.Model) -> bool:
    """Brings a function to the model's opset; says whether it means what the model does then."""
    have, want = function.opset_imports.get(""), model.graph.opset_imports.get("")
    others = {d: v for d, v in function.opset_imports.items() if d and model.graph.opset_imports.get(d, v) != v}
    kinds = {a.type for a in function.attributes.values()}
    if others or kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return False
    if have is not None and (want is None or have > want):
        return False
    if have is None or want is None:
        return True
    try:
        raise_nodes(list(function.graph.all_nodes()), have, want)
    except Refusal:
        return False
    function.opset_imports[""] = want
    return True
