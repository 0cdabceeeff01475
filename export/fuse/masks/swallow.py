"""Whether a mask that is added is nothing or swallows the score: every element 0, or so large that a score vanishes.

`(1 - keep) * finfo.min` is such a mask for whatever integers `keep` holds: a whole number times a huge one.
"""

import onnx_ir as ir

from export.graph.values import made_by, uniform

_MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice", "Identity")
_DEPTH = 24


def swallows(value: ir.Value | None, huge: float, left: int = _DEPTH) -> bool:
    """Says whether every element of a tensor is provably 0, at least `huge`, at most -`huge`, or infinite."""
    number = uniform(value)
    if number is not None:
        return number == 0.0 or abs(number) >= huge
    node = made_by(value, "Mul", "Where", "Neg", "Cast", *_MOVES)
    if node is None or not left:
        return False
    if node.op_type == "Mul":
        sides = ((node.inputs[0], uniform(node.inputs[1])), (node.inputs[1], uniform(node.inputs[0])))
        return any(c is not None and abs(c) >= huge and whole(x, left - 1) for x, c in sides)
    if node.op_type == "Where":
        return all(swallows(branch, huge, left - 1) for branch in node.inputs[1:])
    return swallows(node.inputs[0], huge, left - 1)


def whole(value: ir.Value | None, left: int = _DEPTH) -> bool:
    """Says whether every element of a tensor is provably an integer, whatever its type."""
    if value is None:
        return False
    if value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL):
        return True
    number = uniform(value)
    if number is not None:
        return number.is_integer()
    node = made_by(value, "Add", "Sub", "Mul", "Neg", "Cast", "Where", *_MOVES)
    if node is None or not left:
        return False
    count = {"Add": 2, "Sub": 2, "Mul": 2}.get(node.op_type, 1)
    sources = node.inputs[1:] if node.op_type == "Where" else node.inputs[:count]
    return all(whole(source, left - 1) for source in sources)
