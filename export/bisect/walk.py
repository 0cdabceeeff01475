"""Walking a graph from one tensor to others: what it is made from, what comes after, where attentions end."""

from collections.abc import Callable, Collection, Iterator

import onnx_ir as ir

from export.graph.values import made_by

_ONE_OP = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryAttention")
_PRODUCTS = ("MatMul", "Einsum", "Gemm")


def ends(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields the output of each attention: of the op, or of the product that comes after a softmax."""
    for node in graph:
        if node.op_type in _ONE_OP:
            yield node.outputs[0]
        elif node.op_type == "Softmax":
            yield from _first(node.outputs[0], lambda value: made_by(value, *_PRODUCTS) is not None)


def nearest(value: ir.Value, wanted: Collection[str]) -> list[str]:
    """Returns the first tensor at or after a value, on each way, whose name is wanted."""
    return [str(found.name) for found in _first(value, lambda v: str(v.name) in wanted)]


def after(value: ir.Value, wanted: Collection[str]) -> set[str]:
    """Returns the next wanted tensors that are computed from a value."""
    following = [v for user, _ in value.uses() for v in user.outputs]
    return {name for v in following for name in nearest(v, wanted)}


def before(value: ir.Value) -> set[str]:
    """Returns the names of all tensors that a value is computed from, itself included."""
    found, waiting = set[str](), [value]
    while waiting:
        current = waiting.pop()
        if str(current.name) in found:
            continue
        found.add(str(current.name))
        node = current.producer()
        waiting += [v for v in node.inputs if v is not None] if node is not None else []
    return found


def between(graph: ir.Graph, value: ir.Value, agreed: Collection[str]) -> tuple[ir.Node, ...]:
    """Returns the nodes from the last tensors that agree to one that does not, in the order of the graph."""
    found, waiting = set[ir.Node](), [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in found:
            continue
        found.add(node)
        waiting += [v for v in node.inputs if v is not None and str(v.name) not in agreed]
    return tuple(node for node in graph if node in found and node.op_type != "Constant")


def _first(value: ir.Value, wanted: Callable[[ir.Value], bool]) -> list[ir.Value]:
    found, waiting, seen = list[ir.Value](), [value], {value}
    while waiting:
        current = waiting.pop()
        if wanted(current):
            found.append(current)
            continue
        for user, _ in current.uses():
            fresh = [v for v in user.outputs if v not in seen]
            seen.update(fresh)
            waiting += fresh
    return found
