"""Symbolic shapes of what the steps write, so that later steps need not guess."""

import onnx_ir as ir

from export.graph.values import Dim


def known(value: ir.Value) -> list[Dim | None] | None:
    """Returns the dimensions of a value, None for each that has no name, or None where not even the rank is known."""
    return None if value.shape is None else _dims(value.shape)


def broadcast(a: ir.Shape | None, b: ir.Shape | None) -> ir.Shape | None:
    """Returns the shape two operands broadcast to, as far as it is known."""
    if a is None or b is None:
        return None
    left, right = _dims(a), _dims(b)
    rank = max(len(left), len(right))
    left, right = [*[1] * (rank - len(left)), *left], [*[1] * (rank - len(right)), *right]
    return ir.Shape([y if x == 1 else x if y in (1, x) else None for x, y in zip(left, right, strict=True)])


def _dims(shape: ir.Shape) -> list[Dim | None]:
    return [d if isinstance(d, int) else d.value for d in shape]
