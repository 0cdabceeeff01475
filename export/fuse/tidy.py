"""Cleans up after fusing: inverse transposes cancel, heads are shared, caches absorbed, unread nodes removed."""

from collections.abc import Container

import onnx_ir as ir
import onnx_ir.passes.common as common

from export.fuse.cache import absorb_caches
from export.fuse.heads import share_heads
from export.graph import shapes
from export.graph.laws.layout import turn_outside
from export.graph.laws.noops import drop_noops, join_reshapes, join_transposes
from export.graph.values import graphs


def tidy(model: ir.Model, refused: Container[str | None] = ()) -> list[ir.Node]:
    """Applies the laws that are safe to miss, in place.

    Args:
        model: After emission.
        refused: Names of Attention nodes that are to keep the cache and the repeated heads they have in front.

    Returns:
        The Attention nodes that got a past and present.
    """
    for graph in graphs(model):
        _settle(graph)
    common.RemoveUnusedNodesPass()(model)
    shapes.infer(model)
    for graph in graphs(model):
        for node in list(graph):
            if node.op_type == "Attention" and node.domain == "" and node.name not in refused:
                share_heads(node)
        _settle(graph)
    common.RemoveUnusedNodesPass()(model)
    return absorb_all(model, refused)


def absorb_all(model: ir.Model, refused: Container[str | None] = ()) -> list[ir.Node]:
    """Makes caches in front of attentions their past and present; returns the Attention nodes that got one."""
    absorbed = [node for graph in graphs(model) for node in absorb_caches(graph, refused)]
    if absorbed:
        common.RemoveUnusedNodesPass()(model)
    return absorbed


def _settle(graph: ir.Graph) -> None:
    """Each law can make room for the others; inverse pairs cancel within a few rounds."""
    for _ in range(4):
        if not join_transposes(graph) + drop_noops(graph) + join_reshapes(graph) + turn_outside(graph):
            return
