"""Attentions left in float32 in a graph that is to compute in half precision: the queries, keys and values cast back.

Rotations and norms of queries and keys are computed in float32 with reason; what they give is within half precision's
range again, and a fused kernel keeps products and sums in float32 anyway. Without the casts the attention is an island
that no fused kernel takes.
"""

from collections.abc import Callable, Iterable

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import label, made_by
from export.lower.step import Step
from export.lower.targets import Target

CAST_BACK = "cast back"
_WIDE = ir.DataType.FLOAT
_OPERANDS = 3


def cast_back(
    nodes: Iterable[ir.Node], row: Target, precision: ir.DataType | None, prefix: Callable[[ir.Node], str]
) -> tuple[list[ir.Node], list[Step]]:
    """Returns the nodes with every attention in float32 computing in `precision`, and a step about each.

    Left alone are targets whose fused kernels take float32 or that have none, and attentions with a cache or scores of
    their own, whose types are the model's interface.

    Args:
        nodes: The attentions and rotations of a graph, in its order; a node that is replaced has left the graph.
        row: The target.
        precision: What the graph is to compute in; None for whatever it computes in.
        prefix: Gives a free prefix for the names of a node's new nodes.
    """
    kept, steps = [], []
    for node in nodes:
        if precision not in row.fused_types or _WIDE in row.fused_types or not _is_island(node):
            kept.append(node)
            continue
        new = _rewritten(node, precision, Builder(node, prefix(node)))
        kept.append(new)
        why = (
            f"{label(new)} was left in float32, for which {row.title} has no fused kernel, in a graph that computes in "
            f"{precision.name.lower()}; the kernel keeps its products and sums in float32 anyway."
        )
        steps.append(Step(new.name or str(new.outputs[0].name), CAST_BACK, why))
    return kept, steps


def _is_island(node: ir.Node) -> bool:
    query = node.inputs[0] if node.inputs else None
    plain = not any(node.inputs[4:]) and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return node.op_type == "Attention" and query is not None and query.dtype == _WIDE and plain


def _rewritten(node: ir.Node, to: ir.DataType, build: Builder) -> ir.Node:
    narrow = [_narrowed(v, to, build) for v in node.inputs[:_OPERANDS]]
    old, name = node.outputs[0], node.name
    attributes = {a.name: a.value for a in node.attributes.values() if not a.is_ref()}
    new = build.node("Attention", [*narrow, *node.inputs[_OPERANDS:]], attributes, dtypes=(to,), shapes=(old.shape,))
    take_place(old, build("Cast", new.outputs[0], dtype=_WIDE, shape=old.shape, to=int(_WIDE)))
    graph = node.graph
    if graph is not None:
        graph.remove(node, safe=True)
    new.name = name
    new.metadata_props.update(node.metadata_props)
    return new


def _narrowed(value: ir.Value | None, to: ir.DataType, build: Builder) -> ir.Value | None:
    if value is None or value.dtype != _WIDE:
        return value
    cast = made_by(value, "Cast")
    if cast is not None and cast.inputs[0] is not None and cast.inputs[0].dtype == to:
        return cast.inputs[0]
    return build("Cast", value, dtype=to, shape=value.shape, to=int(to))
