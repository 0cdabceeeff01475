"""Says which tensors a mask subtracts: there it is a large number that hides a key, not a low one."""

from collections.abc import Container

import onnx_ir as ir

from export.graph.values import uniform


def subtracted(mask: ir.Value, leaves: Container[str]) -> set[str]:
    """Returns the names of the leaves that enter a mask with a minus on every way.

    Args:
        mask: The mask.
        leaves: Where the region begins, by name.
    """
    signs: dict[str, set[bool]] = {}
    seen: set[tuple[ir.Value, bool]] = set()
    waiting = [(mask, False)]
    while waiting:
        value, minus = waiting.pop()
        if (value, minus) in seen:
            continue
        seen.add((value, minus))
        node = value.producer()
        if str(value.name) in leaves or node is None:
            signs.setdefault(str(value.name), set()).add(minus)
            continue
        turned = node.op_type == "Neg" or any((uniform(v) or 0.0) < 0.0 for v in node.inputs if _multiplies(node))
        for at, source in enumerate(node.inputs):
            if source is not None:
                waiting.append((source, minus != (turned or (node.op_type == "Sub" and at == 1))))
    return {name for name, found in signs.items() if found == {True} and name in leaves}


def _multiplies(node: ir.Node) -> bool:
    return node.op_type in ("Mul", "Div")
