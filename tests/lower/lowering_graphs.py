"""Small text graphs with one Attention, and the ways to run what became of them."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

SIZES = {"B": 2, "S": 5, "T": 7, "P": 3, "PS": 8, "PT": 10}
LOWEST = float(np.finfo(np.float32).min)
NUMPY = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
    onnx.TensorProto.INT32: np.dtype(np.int32),
    onnx.TensorProto.INT64: np.dtype(np.int64),
    onnx.TensorProto.BOOL: np.dtype(bool),
}


def model(inputs: str, body: str, outputs: str = "float[B,4,S,16] y", opset: int = 25) -> ir.Model:
    """Returns a model from the text of its inputs, nodes and outputs."""
    return ir.from_onnx_text(f'<ir_version: 11, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}')


def attention(
    mask: str = "",
    attributes: str = "",
    *,
    dtype: str = "float",
    heads: int = 4,
    kv_heads: int = 4,
    size: int = 16,
    value_size: int = 0,
    keys: str = "T",
    queries: str = "S",
    opset: int = 25,
) -> ir.Model:
    """Returns a graph that is one Attention over q, k and v of four axes, and m where a mask type is given."""
    value_size = value_size or size
    inputs = (
        f"{dtype}[B,{heads},{queries},{size}] q, {dtype}[B,{kv_heads},{keys},{size}] k, "
        f"{dtype}[B,{kv_heads},{keys},{value_size}] v" + (f", {mask} m" if mask else "")
    )
    extra = f", {attributes}" if attributes else ""
    body = f"[attn] y = Attention <scale: float = 0.25{extra}> (q, k, v{', m' if mask else ''})"
    return model(inputs, body, f"{dtype}[B,{heads},{queries},{value_size}] y", opset)


def feeds(graph: ir.Model, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> dict[str, np.ndarray]:
    """Returns random inputs; masks have one full row of each kind of hiding, and rows that hide some keys."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for value in ir.to_proto(graph).graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or sizes[d.dim_param] for d in kind.shape.dim]
        dtype = NUMPY[kind.elem_type]
        if dtype.kind == "b":
            drawn[value.name] = np.asarray(generator.random(shape) > 0.4)
            if shape:
                drawn[value.name].reshape(-1, shape[-1])[0] = False
        elif dtype.kind == "i":
            drawn[value.name] = generator.integers(0, 8, shape).astype(dtype)
        else:
            drawn[value.name] = generator.standard_normal(shape).astype(dtype)
    if "m" in drawn and drawn["m"].dtype.kind == "f":
        mask = drawn["m"]
        mask[generator.random(mask.shape) > 0.6] = -np.inf
        rows = mask.reshape(-1, mask.shape[-1])
        rows[0] = -np.inf
        if len(rows) > 1:
            rows[1] = np.finfo(mask.dtype).min
        if len(rows) > 2:
            rows[2, ::2], rows[2, 1::2] = np.finfo(mask.dtype).min, -np.inf
    return drawn


def run_ort(graph: ir.Model, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs on ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(given)))


def check(graph: ir.Model) -> None:
    """Runs onnx's full checker."""
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def ops(graph: ir.Model) -> list[str]:
    """Returns the operators of the main graph in order, constants left out."""
    return [n.op_type for n in graph.graph if n.op_type != "Constant"]


def node(graph: ir.Model, op: str = "Attention") -> ir.Node:
    """Returns the only node of an operator."""
    (found,) = (n for n in graph.graph if n.op_type == op)
    return found
