"""Raises a graph's opset to one that has Attention and RotaryEmbedding, node by node, or says which node forbids it.

Between opsets 13 and 24 nearly every new operator version only admits more element types. The few that changed meaning
or form are listed here: each has an adapter, or stops the raise. (Source: the operator changelog of the ONNX standard.)
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import Refusal, graphs, label

ATTENTION_OPSET = 23
"""First opset with Attention and RotaryEmbedding."""

_OLDEST = 13
"""Before this, Softmax flattened its input to two axes and Squeeze had attributes: another language."""

_AXES_BECAME_INPUT = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
}  # fmt: skip
"""Opset 18: `axes` is an input."""

_CHANGED = {
    "BatchNormalization": (14, "has other outputs in training"),
    "RoiAlign": (16, "places its samples half a pixel elsewhere"),
    "GridSample": (20, "renamed its modes"),
    "DFT": (20, "takes its axis as an input"),
    "GroupNormalization": (21, "has one scale a channel instead of one a group"),
    "Upsample": (10, "was removed"),
    "Scatter": (11, "was removed"),
}
"""Operator: (the opset where its meaning or form changed, how). A graph from before with such a node is not raised."""


_WITHOUT_KERNEL = {
    "Bernoulli", "GlobalLpPool", "MaxRoiPool", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "RoiAlign",
}  # fmt: skip
"""Opset 22 gave these another element type and no other meaning, and ONNX Runtime (1.31) no kernel from there on."""


def raise_opset(model: ir.Model, target: int = ATTENTION_OPSET) -> int:
    """Raises the model's default opset to at least `target`, in place; returns the opset it had.

    Raises:
        Refusal: The opset is older than 13, or a node changed its meaning on the way and has no adapter.
    """
    had = model.graph.opset_imports.get("", target)
    if had >= target:
        return had
    if had < _OLDEST:
        raise Refusal(
            "K901", f"The graph has opset {had}; below {_OLDEST} the operators' meaning differs. Export again."
        )
    bodies: list[ir.Graph] = list(graphs(model))
    for function in model.functions.values():
        bodies += [function.graph, *function.graph.subgraphs()]
    raise_nodes([node for graph in bodies for node in graph], had, target)
    model.graph.opset_imports[""] = target
    for imports in [*(b.opset_imports for b in bodies), *(f.opset_imports for f in model.functions.values())]:
        if "" in imports:  # a function may not mean another opset than the model's
            imports[""] = target
    model.ir_version = max(model.ir_version, 10)
    return had


def raise_nodes(nodes: Sequence[ir.Node], had: int, target: int) -> None:
    """Rewrites nodes of one opset as those of a later one, in place.

    Raises:
        Refusal: A node changed its meaning on the way and has no adapter; nothing was changed then.
    """
    nodes = [node for node in nodes if node.domain in ("", "ai.onnx")]
    for node in nodes:
        if had < 18 <= target and "axes" in node.attributes and node.attributes["axes"].is_ref():
            raise Refusal("K902", f"{label(node)} has the axes of its function, which are an input from opset 18 on.")
        changed = _CHANGED.get(node.op_type)
        if node.op_type == "BatchNormalization" and len(node.outputs) == 1:
            continue  # at inference nothing changed
        if changed is not None and had < changed[0] <= target:
            raise Refusal(
                "K902",
                f"{label(node)} {changed[1]} at opset {changed[0]}, so the graph cannot be raised from opset {had} "
                f"to {target}. Export with opset {changed[0]} or later.",
            )
        if had < 22 <= target and node.op_type in _WITHOUT_KERNEL:
            raise Refusal(
                "K904",
                f"{label(node)} means the same at opset {target}, but ONNX Runtime has no kernel for it from opset 22 "
                f"on: raised from opset {had}, the model would not run any more.",
            )
    for node in nodes:
        if had < 18 <= target:
            _adapt_to_18(node)
        if node.version is not None:
            node.version = None


def _adapt_to_18(node: ir.Node) -> None:
    if node.op_type in _AXES_BECAME_INPUT and "axes" in node.attributes:
        axes = Builder(node, node.name or node.outputs[0].name or node.op_type).constant(
            np.asarray(node.attributes["axes"].as_ints(), np.int64)
        )
        del node.attributes["axes"]
        node.resize_inputs(2)
        node.replace_input_with(1, axes)
    elif node.op_type == "Split" and len(node.inputs) < 2 and "num_outputs" not in node.attributes:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
