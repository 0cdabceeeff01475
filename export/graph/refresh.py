"""Symbolic shapes after a change: only nodes whose inputs changed are inferred again, and only what is better is taken.

Laws keep the meaning of every value they leave, so what was once inferred about it stays true. Inferring a graph again
after each law would cost as much as the first time, and the first time is most of what fusing costs.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from export.graph.values import graphs

_MEMO = "export.inferred"
"""Where a model keeps, while it is worked on, what every node was when its outputs were inferred."""

Known = frozenset[str]
"""The names of the dimensions of the graph's inputs, which mean something."""

_Marks = dict[ir.Node, tuple[Any, ...]]


def names_in(text: str) -> set[str]:
    """Returns the identifiers in a dimension's symbol or expression."""
    return set(re.findall(r"[A-Za-z_][\w.]*", text)) - {"Min", "Max", "floor", "ceiling", "Mod"}


def remember(model: ir.Model) -> None:
    """Notes that the shapes of all values are inferred from what their nodes are now."""
    model.meta[_MEMO] = {node: _mark(node) for graph in graphs(model) for node in graph}


def forget(model: ir.Model) -> None:
    """Drops the notes."""
    model.meta.pop(_MEMO, None)


def refresh(model: ir.Model, known: Known, normalise: Callable[[ir.Value], None]) -> bool:
    """Infers the outputs of the nodes that are new or whose inputs changed since the last time, in place.

    Args:
        model: A model whose laws were applied since.
        known: The names that mean something.
        normalise: Writes a value's shape in the form that the rest of the project reads.

    Returns:
        Whether it could: not where nothing is remembered, nor where a node changed that the library reads as a whole
        (one that holds graphs or has no rule of its own).
    """
    marks: _Marks | None = model.meta.get(_MEMO)
    if marks is None:
        return False
    from onnx_shape_inference import registry

    context: Any = None
    told: set[ir.Value] = set()
    now: _Marks = {}
    for at, graph in enumerate(graphs(model)):
        for node in graph:
            mark = _mark(node)
            if marks.get(node) == mark and told.isdisjoint(node.inputs):
                now[node] = mark
                continue
            hold(node)
            context = context or _context(model)
            rule = registry.get(node.domain, node.op_type, version=context.get_opset_version(node.domain))
            whole = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
            if at or rule is None or whole:
                return False
            if not _again(context, node, rule, known, normalise, told):
                return False
            now[node] = _mark(node)
    model.meta[_MEMO] = now
    return True


def _mark(node: ir.Node) -> tuple[Any, ...]:
    """Returns all that the shapes of a node's outputs are inferred from; equal where those are."""
    inputs = [(v, v.shape, v.type, v.const_value) for v in node.inputs if v is not None]
    return (*node.attributes.values(), *inputs)


def hold(node: ir.Node) -> None:
    """Lets the output of a Constant hold its tensor, where it does not, with its type and shape."""
    if node.op_type == "Constant" and node.domain == "":
        held, output = node.attributes.get("value"), node.outputs[0]
        if held is not None and output.const_value is None and not held.is_ref():
            output.const_value = held.value
            take_type(output)


def take_type(value: ir.Value) -> None:
    """Gives a value the type and shape of the tensor that it holds, where it has none."""
    data = value.const_value
    if data is not None and value.type is None:
        value.type = ir.TensorType(data.dtype)
    if data is not None and value.shape is None:
        value.shape = ir.Shape(data.shape.numpy())


def _context(model: ir.Model) -> Any:
    """Returns what the library infers in: made once something changed, for every name is looked at."""
    from onnx_shape_inference import ShapeInferenceContext, registry

    registry.collect()
    context = ShapeInferenceContext(model.opset_imports)
    context.reserve_symbol_names(_symbols(model))
    return context


def _symbols(model: ir.Model) -> set[str]:
    """Returns every name of a dimension, and every whole expression: none of them may be given anew."""
    shapes = [v.shape for g in graphs(model) for n in g for v in n.outputs if v.shape is not None]
    texts = {d.value for shape in shapes for d in shape if not isinstance(d, int) and d.value is not None}
    return {name for text in texts for name in names_in(text)}


def _again(
    context: Any,
    node: ir.Node,
    rule: Callable[[Any, ir.Node], None],
    known: Known,
    normalise: Callable[[ir.Value], None],
    told: set[ir.Value],
) -> bool:
    from onnx_shape_inference import SYM_DATA_KEY

    for value in node.inputs:
        if value is not None:
            context.name_anonymous_dims(value)
            _tell(context, value, SYM_DATA_KEY)
    before = [(v.shape, v.metadata_props.pop(SYM_DATA_KEY, None)) for v in node.outputs]
    for value in node.outputs:
        if value.shape is not None:
            value.shape = ir.Shape([d if _means(d, known) else ir.SymbolicDim(None) for d in value.shape])
    try:
        rule(context, node)
    except Exception:  # an alpha library: the whole graph is tried next, which forgives single nodes
        return False
    for value, (shape, data) in zip(node.outputs, before, strict=True):
        normalise(value)
        _keep_better(context, value, shape, known)
        if value.metadata_props.get(SYM_DATA_KEY) != data:
            told.add(value)
    return True


def _tell(context: Any, value: ir.Value, key: str) -> None:
    """Tells the library the elements of a shape vector that it found in an earlier round."""
    data = value.metadata_props.get(key)
    if data is not None and context.get_symbolic_value(value) is None:
        found = [x if isinstance(x, int) else ir.SymbolicDim(x) for x in json.loads(data)]
        context.set_symbolic_value(value, found)


def _means(dim: int | ir.SymbolicDim, known: Known) -> bool:
    return isinstance(dim, int) or (dim.value is not None and names_in(dim.value) <= known)


def _keep_better(context: Any, value: ir.Value, before: ir.Shape | None, known: Known) -> None:
    """Keeps a dimension's earlier name where the new one means no more: one that was made up just now does not."""
    after = value.shape
    if before is None or after is None:
        value.shape = before if after is None else after
    elif len(before) == len(after):
        merged = [
            new if _means(new, known) or _tells_more(context, str(new), old) else old
            for old, new in zip(before, after, strict=True)
        ]
        value.shape = before if merged == list(before) else ir.Shape(merged)


def _tells_more(context: Any, new: str, old: int | ir.SymbolicDim) -> bool:
    unknown = not isinstance(old, int) and (old.value is None or names_in(old.value) == {old.value})
    return unknown and not any(context.is_generated_symbol(name) for name in names_in(new))
