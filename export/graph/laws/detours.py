"""Law: what is added between a Reshape and the Reshape back may as well be added outside.

`reshape(reshape(x, A) + t + u, shape of x) == x + reshape(t + u, shape of x)`, where t and u have all axes of A between
them: scores split over the rows and columns of a picture, for a bias on each, and merged again.
"""

from dataclasses import dataclass

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import Dim, broadcast, dims, made_by

_TERMS = 4
"""Terms beyond which no detour is looked for; there are two where keys are split in two."""


@dataclass(frozen=True)
class _Detour:
    """A tensor that was reshaped, and what was added to it since."""

    source: ir.Value
    terms: tuple[ir.Value, ...] = ()


def add_outside(graph: ir.Graph) -> int:
    """Moves such sums out of the two Reshapes around them; returns how many."""
    moved = 0
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        inside, result = node.inputs[0], node.outputs[0]
        shape, frame = dims(result), dims(inside)
        if inside is None or shape is None or frame is None or shape[-1:] == frame[-1:]:
            continue  # where the last axis stays, the rows are what they were and nothing is in the way
        detour = _detour(inside, shape)
        if detour is None or not detour.terms or _joint(detour.terms) != frame:
            continue
        build = Builder(node, node.name or str(result.name))
        total = detour.terms[0]
        for term in detour.terms[1:]:
            total = build("Add", total, term, dtype=result.dtype)
        total = build("Reshape", total, node.inputs[1], dtype=result.dtype, shape=result.shape)
        take_place(result, build("Add", detour.source, total, dtype=result.dtype, shape=result.shape))
        graph.remove(node, safe=True)
        moved += 1
    return moved


def _detour(value: ir.Value, shape: tuple[Dim, ...], left: int = _TERMS) -> _Detour | None:
    """Returns how `value` was made of a tensor of that shape, or None where it was not."""
    start = made_by(value, "Reshape")
    if start is not None:
        source = start.inputs[0]
        return _Detour(source) if source is not None and dims(source) == shape else None
    add = made_by(value, "Add")
    if add is None or not left:
        return None
    for side, term in (add.inputs, reversed(add.inputs)):
        found = _detour(side, shape, left - 1) if side is not None and dims(side) == dims(value) else None
        if found is not None and term is not None:
            return _Detour(found.source, (*found.terms, term))
    return None


def _joint(terms: tuple[ir.Value, ...]) -> tuple[Dim, ...] | None:
    """Returns the shape of the terms' sum, or None where it is not certain."""
    total: tuple[Dim, ...] | None = ()
    for term in terms:
        shape = dims(term)
        total = None if total is None or shape is None else broadcast(total, shape)
    return total
