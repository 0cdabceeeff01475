"""From where two graphs part to the likely cause and the node it is a mistake of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from export.bisect import differing, operands, signatures, walk
from export.bisect.judging import Judged
from export.bisect.operands import Operands, attention_before
from export.bisect.pairs import scope
from export.bisect.result import Cause, Node
from export.bisect.rotation import ROTARY
from export.bisect.tensors import Tensors
from export.graph.source_lines import source_line
from export.parity.precision import Precision

if TYPE_CHECKING:
    import numpy as np

_PARTS = {
    0: frozenset({"rope", "heads"}),
    1: frozenset({"rope", "heads", "key-value"}),
    2: frozenset({"heads", "key-value"}),
    3: frozenset({"mask", "causal"}),
}
"""What may be wrong where the first tensor that parts is on the way to an operand, by the operand's place."""


_OTHER = {"query": "on-key", "key": "on-query"}
"""How the code of a mistake on the other operand ends."""


@dataclass(frozen=True)
class Graphs:
    """Both graphs, with A's inputs and the precision compared at."""

    a: Tensors
    b: Tensors
    feeds: "Mapping[str, np.ndarray]"
    dtype: Precision


@dataclass(frozen=True)
class Found:
    """Likely causes, the closest first, and the node they are about where it is not the one that makes the tensor."""

    causes: tuple[Cause, ...]
    node: Node | None = None


def find(graphs: Graphs, block: Judged, tensor: Judged) -> Found:
    """Returns the likely causes of a tensor that parts, inside a block that parts.

    Args:
        graphs: Both.
        block: The first block's output beyond budget.
        tensor: The first tensor beyond budget, at or before it.
    """
    plain = _plain(graphs, tensor)
    right = _attention(graphs, block)
    if right is None:
        return Found(plain)
    written = _written(graphs.b, operands.canonical(graphs.b), block.pair.name)
    own = _own(graphs.b, written)
    parts = _reached(graphs.b, written, tensor, block)
    overflow = signatures.overflow(right, block.actual, graphs.dtype) if parts is None else None
    if overflow:
        return Found((overflow, *plain), own)
    if operands.distance(right, block.actual, block.expected, graphs.dtype) <= 1.0:
        text = "They differ only in rows that see no key, where each implementation gives its own."
        return Found((Cause("rows-without-keys", text, "mask"),), own)
    likely = signatures.explain(right, block, graphs.dtype, parts, None if parts is None else tensor.actual)
    if not likely:
        return Found(plain)
    return Found((*likely, *plain), _rotation(graphs, right, likely[0]) or own)


def overflowed(graphs: Graphs, output: Judged) -> Found:
    """Returns the first attention of A whose scores no number of the dtype holds, where an output is not finite."""
    graph = operands.canonical(graphs.a)
    for node in graph.model.graph:
        if node.op_type != "Attention":
            continue
        cause = signatures.overflow(operands.arrays_of(graph, node, graphs.feeds), output.actual, graphs.dtype)
        if cause is not None:
            return Found((cause,), _told(node))
    return Found(())


def _plain(graphs: Graphs, tensor: Judged) -> tuple[Cause, ...]:
    ours, theirs = graphs.a.values.get(tensor.pair.key), graphs.b.values[tensor.pair.name]
    node = theirs.producer()
    if node is None:
        return ()
    return differing.explain(
        ours.producer() if ours is not None else None, node, tensor.actual, tensor.expected, graphs.dtype
    )


def _attention(graphs: Graphs, block: Judged) -> Operands | None:
    """Returns A's attention as arrays; None where the block holds none that can be read."""
    graph = operands.canonical(graphs.a)
    node = _written(graphs.a, graph, block.pair.key)
    if node is None:
        return None
    try:
        return operands.read_arrays(graph, node, graphs.feeds, block.expected, graphs.dtype)
    except (KeyError, ValueError):  # an operand that no run gives, or a layout that is none of the standard's
        return None


def _written(graph: Tensors, canonical: Tensors, name: str) -> ir.Node | None:
    """Returns the Attention that ends in a tensor; fusing may have taken its name, not that of all that follow."""
    kept = walk.nearest(graph.values[name], canonical.values) if name in graph.values else []
    return next((node for name in kept if (node := attention_before(canonical, name))), None)


def _reached(b: Tensors, attention: ir.Node | None, tensor: Judged, block: Judged) -> frozenset[str] | None:
    """Returns what may be wrong by the operands that the tensor reaches; None for all, where it is not before them."""
    if attention is None or tensor.pair.name == block.pair.name:
        return None
    found: set[str] = set()
    for place, value in enumerate(attention.inputs[:4]):
        if value is not None and tensor.pair.name in walk.before(value):
            found |= _PARTS[place]
    return frozenset(found) if found else None


def _own(b: Tensors, attention: ir.Node | None) -> Node | None:
    """Returns the Attention where B itself has it; where B writes it out, what makes the tensor says more."""
    if attention is None:
        return None
    return next((_told(n) for n in b.model.graph if n.op_type == "Attention" and n.name == attention.name), None)


def _rotation(graphs: Graphs, right: Operands, cause: Cause) -> Node | None:
    """Returns the rotation that a cause is about: B's own, or A's where B has none there."""
    if cause.part != "rope":
        return None
    wanted = [part for part in ("query", "key") if part in right.rotations and not cause.code.endswith(_OTHER[part])]
    part = next(iter(wanted), "key")
    ours = right.rotations[part].node
    same = (n for n in graphs.b.model.graph if n.op_type == ROTARY and n.outputs[0].name == ours.outputs[0].name)
    return _told(next(same, ours))


def _told(node: ir.Node | None) -> Node | None:
    return (
        None
        if node is None
        else Node(node.name or str(node.outputs[0].name), node.op_type, scope(node), source_line(node))
    )
