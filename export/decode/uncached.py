"""A model that brings a cache along, without it: what it does before anything was cached, which is one forward.

With a past of length 0 a concatenation is its new part and an attention sees its new keys alone. From there the cache
of another kind can be put in.
"""

import onnx_ir as ir
import onnx_ir.passes.common as common

from export.decode.grow import Step
from export.decode.tokens import refused
from export.fuse import Options, fuse
from export.graph.build import Builder, take_place
from export.graph.shapes import infer
from export.graph.values import attribute, dims, label

_INT = ir.DataType.INT64


def uncached(step: Step) -> ir.Model:
    """Returns the model of a step as one forward over all tokens.

    Raises:
        UsageError: A past tensor is used in another way than as a cache.
    """
    model = step.model.clone()
    graph = model.graph
    inputs = {str(v.name): v for v in graph.inputs}
    tokens = inputs[step.tokens[0]]
    length = (dims(tokens) or (None, None))[1]
    presents = {cache.present for cache in step.caches}
    for output in [o for o in graph.outputs if o.name in presents]:
        graph.outputs.remove(output)
    for cache in step.caches:
        past = inputs[cache.past]
        for node, at in list(past.uses()):
            _without(node, at, past, cache.axis, tokens)
        if past.uses():
            raise refused(f"{cache.past!r} is read by {label(next(iter(past.uses()))[0])}, which is no use of a cache.")
        graph.inputs.remove(past)
    if step.mask:
        mask = inputs[step.mask]
        mask.shape = ir.Shape([*(mask.shape or ())[:-1], length])
    common.RemoveUnusedNodesPass()(model)
    for value in [v for n in graph for v in n.outputs]:
        value.shape = None  # written for a past of some length
    infer(model)
    return fuse(model, Options(verify=False)).model


def _without(node: ir.Node, at: int, past: ir.Value, axis: int, tokens: ir.Value) -> None:
    """Lets a node do without the past, an empty one."""
    build = Builder(node, f"{node.name or node.outputs[0].name}/uncached")
    if node.op_type == "Attention" and at in (4, 5):
        node.replace_input_with(at, None)
        for output in node.outputs[1:3]:
            if output.uses():
                take_place(output, _given(node, output, build))
        if not any(v is not None for v in node.inputs[4:6]):
            node.resize_outputs(1)
            node.resize_inputs(max(i for i, v in enumerate(node.inputs) if v is not None) + 1)
    elif node.op_type == "Concat" and len(node.inputs) == 2 and at == 0 and node.inputs[1] is not None:
        if attribute(node, "axis", 0) % len(dims(past) or (0,)) == axis:
            take_place(node.outputs[0], build("Identity", node.inputs[1], dtype=past.dtype))
            node.replace_input_with(0, None)
    elif node.op_type == "Shape":
        sizes = dims(past) or ()
        start = node.attributes["start"].as_int() if "start" in node.attributes else None
        end = node.attributes["end"].as_int() if "end" in node.attributes else None
        batch = build("Shape", tokens, dtype=_INT, start=0, end=1)
        parts = [
            build.axes(0) if i == axis else build.axes(d) if isinstance(d, int) else batch for i, d in enumerate(sizes)
        ][start:end]
        take_place(node.outputs[0], parts[0] if len(parts) == 1 else build("Concat", *parts, dtype=_INT, axis=0))
        node.replace_input_with(0, None)


def _given(node: ir.Node, present: ir.Value, build: Builder) -> ir.Value:
    """Returns what an attention was given where its present was read: its new keys or values."""
    source = node.inputs[1 if present is node.outputs[1] else 2]
    return build("Identity", source, dtype=present.dtype)
