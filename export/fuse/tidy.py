"""Cleans up after fusing: the inverse transposes cancel, repeated heads are shared, what nobody reads is removed."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from export.fuse.heads import share_heads
from export.graph import shapes
from export.graph.laws.noops import drop_noops, join_reshapes, join_transposes
from export.graph.values import graphs


def tidy(model: ir.Model) -> None:
    """Applies the laws that are safe to miss, in place."""
    for graph in graphs(model):
        _settle(graph)
    common.RemoveUnusedNodesPass()(model)
    shapes.infer(model)
    for graph in graphs(model):
        for node in list(graph):
            if node.op_type == "Attention" and node.domain == "":
                share_heads(node)
        _settle(graph)
    common.RemoveUnusedNodesPass()(model)


def _settle(graph: ir.Graph) -> None:
    """Each law can make room for the others; inverse pairs cancel within a few rounds."""
    for _ in range(4):
        if not join_transposes(graph) + drop_noops(graph) + join_reshapes(graph):
            return
