"""What no step can bring to a target is refused here, before any parser sees it: some of them abort the process."""

import onnx_ir as ir

from export.errors import LoweringRefusedError
from export.graph.values import graphs, label
from export.lower.call import Call
from export.lower.targets import Contrib, Target


def refuse_model(model: ir.Model, row: Target) -> None:
    """Checks opset and operator domains of a model without functions.

    Raises:
        LoweringRefusedError: The target would refuse the graph, or take an operator for another.
    """
    opset = model.graph.opset_imports.get("", 0)
    if row.opset is not None and opset > row.opset:
        raise LoweringRefusedError(
            f"The model has opset {opset}; {row.title} reads up to {row.opset}. "
            f"Export it with opset_version <= {row.opset}."
        )
    for graph in graphs(model):
        for node in graph:
            _refuse_operator(node, row)


def _refuse_operator(node: ir.Node, row: Target) -> None:
    if node.domain in ("", "ai.onnx"):
        return
    operator = f"{node.domain}::{node.op_type}"
    if node.domain == "com.microsoft" and row.contrib is not None:
        if node.op_type not in row.contrib:
            raise LoweringRefusedError(
                f"{label(node)}: {row.title} does not compute {operator}, an operator of ONNX Runtime alone. "
                "Start from the exported model, not from one that ONNX Runtime has optimised."
            )
        _refuse_contrib(node, row.contrib[node.op_type], row)
        return
    if row.foreign == "none":
        raise LoweringRefusedError(
            f"{label(node)}: {row.title} has no plugins and ignores domains, so {operator} fails or is taken for "
            "another operator. Write it with standard operators, or as a function of the model."
        )
    if row.foreign == "plugin" and _is_standard(node.op_type):
        raise LoweringRefusedError(
            f"{label(node)}: {row.title} ignores domains and would compute {operator} as ai.onnx::{node.op_type}. "
            "Give the operator a name of its own."
        )


def _refuse_contrib(node: ir.Node, known: Contrib, row: Target) -> None:
    extra = [f"input {at}" for at, value in enumerate(node.inputs) if value is not None and at >= known.inputs]
    for name, attribute in node.attributes.items():
        honoured = known.attributes.get(name)
        if name not in known.attributes or (honoured is not None and attribute.value != honoured):
            extra.append(f"{name}={attribute.value}")
    extra += [f"output {at}" for at, value in enumerate(node.outputs) if at and value.name]
    if extra:
        raise LoweringRefusedError(
            f"{label(node)}: {row.title} does not compute {', '.join(extra)} of com.microsoft::{node.op_type}, or not "
            "as ONNX Runtime does. Start from the exported model, not from one that ONNX Runtime has optimised."
        )


def _is_standard(op_type: str) -> bool:
    import onnx.defs

    return onnx.defs.has(op_type, "")


def refuse_call(call: Call, row: Target) -> None:
    """Checks what is known of one attention.

    Raises:
        LoweringRefusedError: Its element type is unknown or not the target's, or its softmax precision is lost there.
    """
    if call.dtype not in row.types:
        raise LoweringRefusedError(
            f"{label(call.node)} computes in {call.dtype.name}, which {row.title} does not; "
            "export it in fp16, bf16 or fp32."
        )
    if call.bias is not None and call.bias.dtype is None:
        raise LoweringRefusedError(
            f"{label(call.node)}: the element type of its mask is not known, so neither is whether True means attend; "
            "run onnx.shape_inference.infer_shapes on the model first."
        )
    if call.precision is not None and call.precision not in row.types:
        raise LoweringRefusedError(
            f"{label(call.node)} wants its softmax in {call.precision.name}, which {row.title} does not compute; "
            "export it with a float32 softmax."
        )
