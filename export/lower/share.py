"""Layers that use one mask get one lowered mask: equal nodes that the steps wrote are merged."""

from collections.abc import Collection, Hashable

import onnx_ir as ir

from export.graph.values import graphs
from export.lower.numbering import attribute_key


def share(model: ir.Model, older: Collection[int]) -> None:
    """Merges equal nodes, in place.

    Args:
        model: The model, its nodes in topological order.
        older: ids of the nodes that were there before lowering; those are left alone.
    """
    for graph in graphs(model):
        first: dict[Hashable, ir.Node] = {}
        for node in list(graph):
            if id(node) in older or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
                continue
            kept = first.setdefault((node.op_identifier(), _ids(node), attribute_key(node)), node)
            if kept is not node:
                node.outputs[0].replace_all_uses_with(kept.outputs[0])
                graph.remove(node, safe=True)


def _ids(node: ir.Node) -> tuple[int, ...]:
    return tuple(id(v) for v in node.inputs)
