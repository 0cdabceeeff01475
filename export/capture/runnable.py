"""A copy of a graph that ONNX Runtime's CPU can run, with the same meaning: what its kernels lack is spelled out.

It has next to nothing for bfloat16, and its Attention takes no mask that broadcasts over queries. Neither says
anything about whether the export is right, so the check runs a copy: half precision widened to fp32 (more exact, same
structure), masks expanded to [.., .., L, S].
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

_QUERY, _KEY, _MASK, _PAST = 0, 1, 3, 4


def expanded_masks(model: "ir.Model") -> "ir.Model | None":
    """Returns a copy in which every 4-D Attention mask is expanded to the scores' size; None where there is none."""
    copied = model.clone()
    changed = False
    for node in list(copied.graph.all_nodes()):
        if node.op_type == "Attention" and node.domain == "" and _has_open_mask(node):
            _expand(node)
            changed = True
    return copied if changed else None


def widened(model: "ir.Model") -> "ir.Model":
    """Returns a copy in which every fp16 and bf16 value, weight and Cast is fp32; weights keep their rounded values."""
    import onnx_ir as ir

    from export.capture.symbols import values

    copied = model.clone()
    for value in values(copied):
        if value.dtype in _half():
            value.type = ir.TensorType(ir.DataType.FLOAT)  # not `value.dtype =`: clones share their type objects
        if value.const_value is not None and value.const_value.dtype in _half():
            value.const_value = ir.tensor(_float32(value.const_value), name=value.name)
    for node in copied.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in _half():
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(_float32(attribute.value)))
            elif (
                name in ("to", "dtype", "output_dtype")
                and attribute.type == ir.AttributeType.INT
                and ir.DataType(attribute.as_int()) in _half()
            ):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    return copied


def session(model: "ir.Model") -> Any:
    """Returns an ONNX Runtime CPU session that runs the graph as it stands, unoptimised.

    What is judged is the graph, not ONNX Runtime's rewriting of it (which, at its highest level, ends the process on
    some fp16 encoders: 1.31).

    Raises:
        Exception: ONNX Runtime's own, where it does not take the graph.
    """
    import tempfile
    from pathlib import Path

    import onnx_ir as ir
    import onnxruntime

    from export.capture.opset import CHECKED_BYTES

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights <= CHECKED_BYTES:
        proto = ir.to_proto(model).SerializeToString()
        return onnxruntime.InferenceSession(proto, options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model.clone(), path, external_data="model.onnx.data")
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _half() -> tuple[Any, Any]:
    import onnx_ir as ir

    return ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def _float32(tensor: Any) -> "npt.NDArray[np.float32]":
    import numpy as np

    array: npt.NDArray[np.float32] = tensor.numpy().astype(np.float32)
    return array


def _has_open_mask(node: "ir.Node") -> bool:
    inputs = node.inputs
    if len(inputs) <= _MASK or inputs[_MASK] is None or (len(inputs) > _PAST and inputs[_PAST] is not None):
        return False
    ranks = [v.shape.rank() if v is not None and v.shape is not None else None for v in inputs]
    return ranks[_QUERY] == ranks[_KEY] == ranks[_MASK] == 4


def _expand(node: "ir.Node") -> None:
    import numpy as np
    import onnx_ir as ir

    query, key, mask = node.inputs[_QUERY], node.inputs[_KEY], node.inputs[_MASK]
    ones = ir.node("Constant", [], {"value": ir.tensor(np.array([1, 1], np.int64))})
    lengths = [ir.node("Shape", [value], {"start": 2, "end": 3}) for value in (query, key)]
    shape = ir.node("Concat", [ones.outputs[0], *(n.outputs[0] for n in lengths)], {"axis": 0})
    grown = ir.node("Expand", [mask, shape.outputs[0]])
    graph = node.graph
    if graph is None:
        raise ValueError("an Attention node outside any graph has no mask to expand")
    graph.insert_before(node, [ones, *lengths, shape, grown])
    node.replace_input_with(_MASK, grown.outputs[0])
