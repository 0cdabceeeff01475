"""Laws about arithmetic on shapes, which decides how tensors are expanded and keeps dead tensors alive."""

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import array, attribute, dims, integers, made_by, rank

_SAME_SHAPE = ("Cast", "Neg", "Softmax", "Identity", "Sqrt", "Exp", "Tanh", "Relu", "Sigmoid", "IsNaN", "Not")
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Where")


def settle_expand(graph: ir.Graph) -> int:
    """Law: `Where(s == -1, kept, s)` with a shape vector s whose entries are known is written out entry by entry.

    The TorchScript exporter writes every `expand` this way; no dimension is ever -1, so only literal entries can be.
    """
    settled = 0
    for node in list(graph):
        if node.op_type != "Where" or node.domain not in ("", "ai.onnx"):
            continue
        equal = made_by(node.inputs[0], "Equal")
        wanted = node.inputs[2]
        kept = array(node.inputs[1])
        if equal is None or wanted is None or kept is None:
            continue
        if integers(equal.inputs[1]) is None or set(integers(equal.inputs[1]) or ()) != {-1}:
            continue
        entries = _entries(wanted) if equal.inputs[0] is wanted else None
        if entries is None or len(entries) != kept.size:
            continue
        build = Builder(node, node.name or str(node.outputs[0].name))
        chosen = []
        for entry, other in zip(entries, kept.reshape(-1), strict=True):
            literal = integers(entry)
            chosen.append(build.axes(int(other)) if literal == (-1,) else entry)
        shape = ir.Shape([len(chosen)])
        output = build("Concat", *chosen, dtype=ir.DataType.INT64, shape=shape, axis=0)
        node.outputs[0].replace_all_uses_with(output)
        if not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
            settled += 1
    return settled


def _entries(shape: ir.Value) -> list[ir.Value] | None:
    """Returns a shape vector's entries as vectors of one, each a literal or taken from a Shape; None where unsure."""
    reshape = made_by(shape, "Reshape", "Identity", "Cast")
    if reshape is not None and dims(shape) == dims(reshape.inputs[0]) is not None and reshape.inputs[0] is not None:
        return _entries(reshape.inputs[0])
    concat = made_by(shape, "Concat")
    if concat is None:
        return None
    entries = [v for v in concat.inputs if v is not None]
    return entries if all(dims(v) == (1,) and (integers(v) or _is_dimension(v)) for v in entries) else None


def _is_dimension(value: ir.Value | None, depth: int = 8) -> bool:
    """Says whether a number is a dimension, or computed from dimensions so that it cannot be negative."""
    if value is None or not depth:
        return False
    literal = integers(value)
    if literal is not None:
        return all(x >= 0 for x in literal)
    node = made_by(value, "Shape", "Gather", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Mul", "Add", "Div")
    if node is None:
        return False
    if node.op_type == "Shape":
        return True
    sources = node.inputs if node.op_type in ("Mul", "Add", "Div") else node.inputs[:1]
    return all(_is_dimension(v, depth - 1) for v in sources)


def detach_shapes(graph: ir.Graph) -> int:
    """Law: the shape of a batched product is known from its factors; reading it need not keep the product alive.

    `Shape(f(a @ b))` for an f that keeps the shape becomes a Concat of parts of Shape(a) and Shape(b).
    """
    detached = 0
    for node in list(graph):
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx"):
            continue
        value = node.inputs[0]
        product = _product_of(value)
        length = rank(value)
        if product is None and _of_weights(value) and _name_dimensions(graph, node):
            detached += 1
            continue
        if product is None or length is None or value is None:
            continue
        a, b = product.inputs
        if a is None or b is None or rank(a) != length or rank(b) != length or dims(a) is None:
            continue
        if (dims(a) or ())[:-2] != (dims(b) or (None,))[:-2]:
            continue
        build = Builder(node, node.name or str(node.outputs[0].name))
        rows = build("Shape", a, dtype=ir.DataType.INT64, shape=ir.Shape([length - 1]), start=0, end=length - 1)
        columns = build("Shape", b, dtype=ir.DataType.INT64, shape=ir.Shape([1]), start=length - 1)
        whole = build("Concat", rows, columns, dtype=ir.DataType.INT64, shape=ir.Shape([length]), axis=0)
        end = node.attributes.get("end")
        start, stop = attribute(node, "start", 0), end.as_int() if end is not None else length
        if (start, stop) != (0, length):
            bounds = (build.constant(np.asarray([x], np.int64)) for x in (start, stop, 0))
            whole = build("Slice", whole, *bounds, dtype=ir.DataType.INT64, shape=node.outputs[0].shape)
        node.outputs[0].replace_all_uses_with(whole)
        if not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
            detached += 1
    return detached


def _of_weights(value: ir.Value | None) -> bool:
    """Says whether a value is attention weights or what was made of them before anything else came in."""
    for _ in range(4):
        if made_by(value, "Softmax") is not None:
            return True
        step = made_by(value, "Reshape", "Cast", "Where", "Identity", "MatMul", "Dropout")
        if step is None:
            return False
        value = step.inputs[2] if step.op_type == "Where" else step.inputs[0]
    return False


def _name_dimensions(graph: ir.Graph, node: ir.Node) -> bool:
    """Writes a Shape whose dimensions are all numbers or dimensions of the graph's inputs from those inputs."""
    end = node.attributes.get("end")
    wanted = (dims(node.inputs[0]) or (None,))[attribute(node, "start", 0) : end.as_int() if end is not None else None]
    places = {d: (v, at) for v in graph.inputs for at, d in enumerate(dims(v) or ()) if isinstance(d, str)}
    factors = [_factor(d, places) for d in wanted]
    if not factors or None in factors:
        return False
    build = Builder(node, node.name or str(node.outputs[0].name))
    parts = []
    for number, symbol in (f for f in factors if f is not None):
        part = build.axes(number)
        if symbol is not None:
            source, at = places[symbol]
            shape = ir.Shape([1])
            size = build("Shape", source, dtype=ir.DataType.INT64, shape=shape, start=at, end=at + 1)
            part = size if number == 1 else build("Mul", part, size, dtype=ir.DataType.INT64, shape=shape)
        parts.append(part)
    whole = build("Concat", *parts, dtype=ir.DataType.INT64, shape=node.outputs[0].shape, axis=0)
    if node.outputs[0].is_graph_output():
        return False
    node.outputs[0].replace_all_uses_with(whole)
    graph.remove(node, safe=True)
    return True


def _factor(dim: int | str | None, places: Container[str]) -> tuple[int, str | None] | None:
    """Reads a dimension as a number times at most one known symbol: 12, `batch`, `4*batch`."""
    if isinstance(dim, int):
        return dim, None
    number, _, symbol = ("1", "", dim or "") if "*" not in (dim or "") else str(dim).partition("*")
    return (int(number), symbol) if number.isdigit() and symbol in places else None


def _product_of(value: ir.Value | None, depth: int = 8) -> ir.Node | None:
    """Returns the MatMul of two activations whose shape a value has, through steps that keep the shape."""
    if value is None or not depth:
        return None
    product = made_by(value, "MatMul")
    if product is not None:
        weights = [v for v in product.inputs if v is None or array(v) is not None or (rank(v) or 0) < 3]
        return None if weights else product
    step = made_by(value, *_SAME_SHAPE)
    if step is not None:
        return _product_of(step.inputs[0], depth - 1)
    step = made_by(value, *_BROADCAST)
    if step is None or dims(value) is None:
        return None
    alike = (v for v in step.inputs if v is not None and dims(v) == dims(value) and array(v) is None)
    return next((found for v in alike if (found := _product_of(v, depth - 1)) is not None), None)
