"""Law: a constant factor or a widening Cast in front of a layout change may as well follow it.

On the way into a product of two activations they move towards it, so that the product's operand is seen as `c * x` or
as a widened x, whatever was reshaped, repeated or transposed in between; the layout change then moves fewer bytes.
"""

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import array, dims, uniform

_LAYOUT = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand")
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def sink_scales(graph: ir.Graph) -> int:
    """Exchanges layout changes with the factors and Casts before them, above every product; returns how many."""
    moved = 0
    for node in list(graph):
        if node.op_type == "MatMul" and node.domain == "" and all(array(v) is None for v in node.inputs):
            for at in range(2):
                moved += _sink(node, at)
    return moved


def _sink(user: ir.Node, at: int) -> int:
    """Walks up from one input of a node and exchanges the first pair it meets, until there is none."""
    moved = 0
    while True:
        place = (user, at)
        node = user.inputs[at].producer() if user.inputs[at] is not None else None  # type: ignore[union-attr]
        while node is not None and not _pair(node):
            side = _scaled_side(node)
            if side is None and node.op_type not in _LAYOUT:
                return moved
            place = (node, side or 0)
            above = node.inputs[side or 0]
            node = above.producer() if above is not None else None
        if node is None:
            return moved
        _exchange(node, *place)
        moved += 1


def _scaled_side(node: ir.Node) -> int | None:
    """Returns which input a node only widens or multiplies by one constant, or None."""
    if node.domain not in ("", "ai.onnx") or not node.outputs:
        return None
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Cast" and source is not None:
        return 0 if source.dtype in _HALF and node.outputs[0].dtype == ir.DataType.FLOAT else None
    if node.op_type in ("Mul", "Div"):
        for side, other in ((0, 1), (1, 0))[: 2 if node.op_type == "Mul" else 1]:
            tensor, number = node.inputs[side], node.inputs[other]
            if tensor is not None and uniform(number) is not None and array(number) is not None:
                same = dims(tensor) is not None and dims(tensor) == dims(node.outputs[0])
                return side if same and uniform(tensor) is None else None
    return None


def _pair(node: ir.Node) -> bool:
    """Says whether a node is a layout change right behind a factor or Cast that nothing else reads."""
    above = node.inputs[0].producer() if node.op_type in _LAYOUT and node.inputs[0] is not None else None
    if above is None or _scaled_side(above) is None or above.outputs[0].is_graph_output():
        return False
    return sum(user.op_type != "Shape" for user, _ in above.outputs[0].uses()) == 1


def _exchange(layout: ir.Node, user: ir.Node, at: int) -> None:
    scaled = layout.inputs[0].producer() if layout.inputs[0] is not None else None
    side = None if scaled is None else _scaled_side(scaled)
    if scaled is None or side is None:
        raise TypeError("a pair was found just before")
    build = Builder(layout, layout.name or str(layout.outputs[0].name))
    source, old = scaled.inputs[side], layout.outputs[0]
    attributes = {name: attr.value for name, attr in layout.attributes.items()}
    moved = build(
        layout.op_type, source, *layout.inputs[1:], dtype=source.dtype if source is not None else None, shape=old.shape,
        **attributes,
    )  # fmt: skip
    if scaled.op_type == "Cast":
        result = build("Cast", moved, dtype=old.dtype, shape=old.shape, to=int(ir.DataType.FLOAT))
    else:
        number = scaled.inputs[1 - side]
        operands = (moved, number) if side == 0 else (number, moved)
        result = build(scaled.op_type, *operands, dtype=old.dtype, shape=old.shape)
    user.replace_input_with(at, result)
    for reader, _ in list(scaled.outputs[0].uses()):
        if reader.op_type == "Shape":
            reader.replace_input_with(0, source)
    for node in (layout, scaled):
        if node.graph is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            node.graph.remove(node, safe=True)
