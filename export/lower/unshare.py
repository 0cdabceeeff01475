"""One tensor as Q or K of several attentions: TensorRT-RTX 1.7 crashes the process while it builds such a graph.

Its importer multiplies Q and K by sqrt(scale). Equal products are merged, and the pass that takes a scalar factor off
the operand of an attention then meets one that another attention has taken already (measured: decoupled cross
attention, where text and image keys share a query; shared keys; Attention(x, x, x)). A factor that is a vector, one
number a channel, is left alone: the scale goes onto Q that way, and the node's own scale becomes 1.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir

from export.errors import LoweringRefusedError
from export.graph.build import Builder
from export.graph.values import dim, graphs, label, made_by, uniform
from export.lower.call import read
from export.lower.numbering import number
from export.lower.step import Step
from export.lower.targets import Target

_READS_SCALED = {("", "Attention"), ("com.microsoft", "MultiHeadAttention"), ("com.microsoft", "GroupQueryAttention")}


def unshare(model: ir.Model, row: Target, prefixes: dict[ir.Node, str]) -> list[Step]:
    """Moves the scale of attentions that share Q or K onto Q, in place.

    Args:
        model: A lowered model.
        row: Its target.
        prefixes: A free name prefix for each Attention node.
    """
    if "shared operands" in row.extras:
        return []
    nodes = [n for g in graphs(model) for n in g if (n.domain, n.op_type) in _READS_SCALED]
    if not nodes:
        return []
    numbers = number(model)
    uses = Counter(numbers.get(v, -1) for n in nodes for v in n.inputs[:2] if v is not None)
    steps = []
    for node in nodes:
        shared = [i for i in (0, 1) if (v := node.inputs[i]) is not None and uses[numbers.get(v, -1)] > 1]
        if shared and node.domain:
            raise LoweringRefusedError(
                f"{label(node)} shares its Q or K with another attention, on which {row.title} crashes; "
                f"start from the exported model, whose attentions are not {node.domain} operators yet."
            )
        if shared and _onto_query(node, shared, Builder(node, prefixes[node])):
            why = f"{row.title} crashes on a scaled Q or K that several attentions share; the scale is a factor on Q."
            steps.append(Step(node.name or "Attention", "scale query", why))
    return steps


def _onto_query(node: ir.Node, shared: list[int], build: Builder) -> bool:
    """Writes the scalar factors of Q and K as vectors, and says whether there were any."""
    call = read(node)
    scale = call.scale
    if scale is None:
        if call.head_size is None:
            raise LoweringRefusedError(f"{label(node)} has no scale and a head size that is not known; export a scale.")
        scale = float(call.head_size**-0.5)
    changed = scale != 1.0
    for index in shared:
        value = node.inputs[index]
        scaled = made_by(value, "Mul", "Div")
        factor = uniform(scaled.inputs[1]) if scaled is not None else None
        if value is not None and scaled is not None and factor is not None and scaled.inputs[0] is not None:
            factor = factor if scaled.op_type == "Mul" else 1 / factor
            node.replace_input_with(index, _times(node, scaled.inputs[0], factor, build))
            changed = True
    query = node.inputs[0]
    if query is not None and scale != 1.0:
        node.replace_input_with(0, _times(node, query, scale, build))
    node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return changed


def _times(node: ir.Node, value: ir.Value, factor: float, build: Builder) -> ir.Value:
    """Returns a value times a factor written as one number a channel."""
    channels = dim(value, -1)
    if not isinstance(channels, int) or value.dtype is None:
        raise LoweringRefusedError(
            f"{label(node)} shares Q or K with another attention, and its channels are not a known number; "
            "run onnx.shape_inference.infer_shapes on the model first."
        )
    vector = build.constant(np.full(channels, factor, value.dtype.numpy()))
    return build("Mul", value, vector, dtype=value.dtype, shape=value.shape)
