"""Which nodes compute the angles that sines and cosines are taken of, where half precision is never enough.

A position of 2,000 times a frequency that is off by one part in 2,048 turns by a radian too much. The tables of rotary
and sinusoidal embeddings are made of positions and constants, at most by one product of matrices; a sine of what a
network computes by more than that (a layer with periodic activations) is left to the precision asked for.
"""

import onnx_ir as ir

_PRODUCTS = frozenset({"Einsum", "Gemm", "MatMul"})
# fmt: off
_STEPS = _PRODUCTS | frozenset({
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Exp", "Expand", "Flatten", "Floor", "Gather", "Identity", "Log",
    "Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where",
})
# fmt: on


def of_graph(graph: ir.Graph) -> frozenset[ir.Node]:
    """Returns the sines and cosines of a graph whose angles come from positions, and the nodes that make the angles."""
    found: set[ir.Node] = set()
    plain: dict[ir.Node, bool] = {}
    for node in graph:
        if node.op_type in ("Sin", "Cos") and node.domain in ("", "ai.onnx"):
            found.add(node)
            _climb(node, found, plain)
    return frozenset(found)


def _climb(node: ir.Node, found: set[ir.Node], plain: dict[ir.Node, bool]) -> None:
    waiting = list(node.predecessors())
    while waiting:
        above = waiting.pop()
        if above in found or above.op_type not in _STEPS or not _makes_numbers(above):
            continue
        if above.op_type in _PRODUCTS and not all(_plain(v.producer(), plain) for v in above.inputs if v is not None):
            continue
        found.add(above)
        waiting += above.predecessors()


def _makes_numbers(node: ir.Node) -> bool:
    """Says whether a node may give floating-point numbers; positions and shapes need no care."""
    return any(v.dtype is None or v.dtype.is_floating_point() for v in node.outputs)


def _plain(node: ir.Node | None, known: dict[ir.Node, bool]) -> bool:
    """Says whether a value is made of inputs and constants without a product or a sine of its own."""
    order, seen = [node] if node else [], set()
    while order:
        above = order.pop()
        if known.get(above) or above in seen:
            continue
        if above.op_type not in _STEPS or above.op_type in _PRODUCTS:
            if _makes_numbers(above):
                return False
            continue
        seen.add(above)
        order += above.predecessors()
    known.update(dict.fromkeys(seen, True))
    return True
