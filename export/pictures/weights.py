"""The attention weights of a graph as outputs of it: softmax(QK^T) of each Attention op and of each Softmax.

An Attention shows them itself (`qk_matmul_output_mode` 3, https://onnx.ai/onnx/operators/onnx__Attention.html); a
Softmax is them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from export.errors import UsageError

AFTER_SOFTMAX = 3


@dataclass(frozen=True)
class Shown:
    """A graph that shows the weights of its attentions.

    Attributes:
        model: A copy of the graph, with more outputs.
        outputs: {name of the Attention or Softmax node: name of the output that holds its weights}.
        reasons: {name of a node: why it cannot show them}.
    """

    model: ir.Model
    outputs: dict[str, str]
    reasons: dict[str, str]


def show(model: ir.Model, names: Iterable[str] | None = None, values: Iterable[str] = ()) -> Shown:
    """Returns a copy of the model that shows weights, and `values` besides.

    Args:
        model: Not changed.
        names: Attention and Softmax nodes; None means every Attention, and every Softmax where there is none.
        values: Names of more tensors to show.
    """
    copy = model.clone()
    nodes = {str(node.name): node for node in copy.graph if node.op_type in ("Attention", "Softmax")}
    wanted = list(names) if names is not None else _all(nodes)
    outputs: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name in wanted:
        node = nodes.get(name)
        if node is None:
            reasons[name] = f"{name} is not in the main graph: it stands in a branch, a loop or a function."
            continue
        try:
            value = _of_attention(node) if node.op_type == "Attention" else node.outputs[0]
        except UsageError as error:
            reasons[name] = str(error)
            continue
        outputs[name] = _output(copy.graph, value)
    tensors = {value.name: value for node in copy.graph for value in node.outputs}
    for each in values:
        if each in tensors:
            _output(copy.graph, tensors[each])
    return Shown(copy, outputs, reasons)


def _all(nodes: dict[str, ir.Node]) -> list[str]:
    attentions = [name for name, node in nodes.items() if node.op_type == "Attention"]
    return attentions or list(nodes)


def _of_attention(node: ir.Node) -> ir.Value:
    if node.domain != "":
        raise UsageError(f"{node.name} is {node.domain}::{node.op_type}, which shows no weights; give the fused.onnx.")
    mode = node.attributes.get("qk_matmul_output_mode")
    if len(node.outputs) > 3 and node.outputs[3].name:
        if mode is not None and mode.as_int() == AFTER_SOFTMAX:
            return node.outputs[3]
        raise UsageError(
            f"{node.name} already shows its scores (mode {mode.as_int() if mode else 0}), not its weights."
        )
    before = len(node.outputs)
    if before < 4:
        node.resize_outputs(4)
        for value in node.outputs[before:3]:
            value.name = ""
    node.attributes["qk_matmul_output_mode"] = ir.AttrInt64("qk_matmul_output_mode", AFTER_SOFTMAX)
    shown = node.outputs[3]
    shown.name = f"{node.outputs[0].name}/weights"
    query = node.inputs[0]
    if query is not None and query.dtype is not None:
        shown.type = ir.TensorType(query.dtype)
    return shown


def _output(graph: ir.Graph, value: ir.Value) -> str:
    if not any(value is output for output in graph.outputs):
        graph.outputs.append(value)
    return str(value.name)
