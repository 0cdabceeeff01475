"""How much work an ONNX graph is at given input sizes: the products it computes, the numbers it must at least move."""

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

from export.bench.workload import Work
from export.graph.shapes import infer
from export.graph.values import attribute, dims

_COUNTED = ("MatMul", "Gemm", "Attention")


def work(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> Work:
    """Returns the work of one run.

    Args:
        model: The graph; not changed.
        shapes: Shape of every input by name.
    """
    sized = model.clone()
    for value in sized.graph.inputs:
        if str(value.name) in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    for graph in sized.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None  # what the exporter noted names the sizes that are numbers now
    infer(sized)
    counts = [_flops(node) for node in sized.graph if node.op_type in _COUNTED and node.domain in ("", "ai.onnx")]
    unknown = sum(count is None for count in counts)
    flops = None if unknown or not counts else sum(count or 0 for count in counts)
    how = "matrix products and attentions of the graph; weights and inputs read and outputs written once"
    if unknown:
        how += f" ({unknown} products of unknown size, so the operations are not counted)"
    return Work(flops, _traffic(sized, shapes), how)


def _flops(node: ir.Node) -> int | None:
    shapes = [_numbers(value) for value in node.inputs[:3]]
    result = _numbers(node.outputs[0])
    if result is None or any(shape is None for shape in shapes[:2]):
        return None
    if node.op_type == "Attention":
        query, key, value = (shape or () for shape in shapes)
        if len(query) != 4 or len(key) != 4 or len(value) != 4:
            return None if len(query) != 3 else 2 * prod(query[:2]) * key[1] * _both(node, query, value)
        return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])
    inner = (shapes[0] or ())[0 if node.op_type == "Gemm" and attribute(node, "transA", 0) else -1]
    return 2 * prod(result) * inner


def _both(node: ir.Node, query: tuple[int, ...], value: tuple[int, ...]) -> int:
    """Returns query heads * (D + Dv) of the three-axis form."""
    heads, kv_heads = attribute(node, "q_num_heads", 1), attribute(node, "kv_num_heads", 1)
    return query[2] + heads * (value[2] // kv_heads)


def _numbers(value: ir.Value | None) -> tuple[int, ...] | None:
    found = dims(value)
    if found is None or not all(isinstance(size, int) for size in found):
        return None
    return tuple(int(size) for size in found)


def _traffic(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> int:
    total = sum(int(v.const_value.nbytes) for v in model.graph.initializers.values() if v.const_value is not None)
    for value in (*model.graph.inputs, *model.graph.outputs):
        size = _numbers(value)
        if value.name not in model.graph.initializers and size is not None and value.dtype is not None:
            total += prod(size) * value.dtype.bitwidth // 8
    return total
