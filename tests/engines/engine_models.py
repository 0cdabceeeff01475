"""Small ONNX graphs with attentions, and one call that builds them: what the engine tests share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from engines import build, graph, profiles
from engines.build import BuiltEngine

F16, F32, BF16, BOOL, I64 = (
    TensorProto.FLOAT16,
    TensorProto.FLOAT,
    TensorProto.BFLOAT16,
    TensorProto.BOOL,
    TensorProto.INT64,
)
DIMS = {"B": (1, 2, 8), "S": (1, 128, 512), "N": (1, 128, 512)}


def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def qkv(dtype: int = F16, head_size: int = 64, heads: int = 4, suffix: str = "") -> list[onnx.ValueInfoProto]:
    """Returns Q [B, H, S, D], K and V [B, H, N, D]."""
    return [value(n + suffix, dtype, "B", heads, "S" if n == "q" else "N", head_size) for n in "qkv"]


def attention(name: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    decomposable = attributes.pop("decomposable", False)
    node = helper.make_node("Attention", list(inputs), [output], name=name, **{"scale": 0.125, **attributes})
    if decomposable:
        node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    return node


def spelled_out(prefix: str, q: str, k: str, v: str, output: str) -> list[onnx.NodeProto]:
    """Returns softmax(q k^T c) v as the exporters write it; the graph must hold the weight "c"."""
    p = prefix
    return [
        helper.make_node("Transpose", [k], [p + "_kt"], perm=[0, 1, 3, 2], name=p + "/Transpose"),
        helper.make_node("MatMul", [q, p + "_kt"], [p + "_s"], name=p + "/MatMul"),
        helper.make_node("Mul", [p + "_s", "c"], [p + "_c"], name=p + "/Mul"),
        helper.make_node("Softmax", [p + "_c"], [p + "_p"], axis=-1, name=p + "/Softmax"),
        helper.make_node("MatMul", [p + "_p", v], [output], name=p + "/MatMul_1"),
    ]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    made = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10, functions=list(functions))


def one(dtype: int = F16, head_size: int = 64, mask: int | None = None, **attributes: Any) -> onnx.ModelProto:
    """Returns a model of one Attention named "attn", with a [B, 1, S, N] mask of that dtype where one is asked."""
    inputs = qkv(dtype, head_size) + ([value("mask", mask, "B", 1, "S", "N")] if mask else [])
    node = attention("attn", [i.name for i in inputs], "y", **attributes)
    return model([node], inputs, [value("y", dtype, "B", 4, "S", head_size)])


def make(onnx_model: onnx.ModelProto, folder: Path, sm: int = 89, **options: Any) -> BuiltEngine:
    """Builds the model with TensorRT-RTX for DIMS (or `dims`)."""
    path = folder / "model.onnx"
    onnx.save(onnx_model, path)
    dims = options.pop("dims", DIMS)
    profile = profiles.derive({i.name: i.shape for i in graph.read(path).inputs}, dims)
    vendor = options.pop("vendor", "tensorrt-rtx")
    return build.build_engine(path, folder / f"model.sm{sm}.engine", vendor=vendor, sm=sm, profile=profile, **options)
