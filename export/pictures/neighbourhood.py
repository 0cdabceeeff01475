"""The nodes that compute one attention, as a small drawing's nodes and edges.

A walk goes back from the attention's output and stops at the linear layers that make its operands. Weights are not
drawn, nor is arithmetic on shapes, which says nothing about attention; how much was left out is counted.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from export.graph.values import array, dims, rank

LIMIT = 40
_LINEAR = ("MatMul", "Gemm", "Conv")
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_ATTRIBUTES = ("perm", "axis", "is_causal", "scale", "softcap", "interleaved", "rotary_embedding_dim", "to")
_SAID_BY_ABSENCE = ("is_causal", "softcap", "interleaved", "rotary_embedding_dim")
"""Attributes whose 0 is what a node without them does."""


def around(end: ir.Value, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Returns the drawing of what computes `end`.

    Args:
        end: The output of the attention.
        kinds: {node name: what the reader read it as}.

    Returns:
        "nodes": op ("" for a tensor that comes from outside), name, shape, note and kind of each; "edges": [from, to]
        pairs of indexes; "left_out": how many nodes beyond the `LIMIT` nearest were not drawn.
    """
    chosen: dict[ir.Node, None] = {}
    beyond: set[ir.Node] = set()
    waiting = deque([end.producer()])
    while waiting:
        node = waiting.popleft()
        if node is None or node in chosen:
            continue
        if len(chosen) == LIMIT:
            beyond.add(node)
            continue
        chosen[node] = None
        if not _is_linear(node):
            waiting.extend(value.producer() for value in _operands(node))
    nodes = [_node(node, kinds) for node in chosen]
    at = {node: index for index, node in enumerate(chosen)}
    edges: list[list[int]] = []
    outside: dict[ir.Value, int] = {}
    for node, index in at.items():
        for value in dict.fromkeys(_operands(node)):
            maker = value.producer()
            if maker in at:
                edges.append([at[maker], index])
                continue
            if value not in outside:
                outside[value] = len(nodes)
                nodes.append({"op": "", "name": str(value.name), "shape": _shape(value), "note": "", "kind": ""})
            edges.append([outside[value], index])
    outside[end] = len(nodes)
    nodes.append({"op": "", "name": str(end.name), "shape": _shape(end), "note": "", "kind": ""})
    if end.producer() is not None:
        edges.append([0, outside[end]])
    return {"nodes": nodes, "edges": edges, "left_out": len(beyond)}


def _is_linear(node: ir.Node) -> bool:
    return node.op_type in _LINEAR and any(_is_weight(value) for value in node.inputs)


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.producer() is None and value.const_value is not None


def _operands(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs worth drawing: no weights, no constants, no sizes."""
    return [v for v in node.inputs if v is not None and not _is_weight(v) and not _is_constant(v) and not _is_size(v)]


def _is_constant(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == "Constant"


def _is_size(value: ir.Value) -> bool:
    return value.dtype in _INTEGERS and (rank(value) or 0) <= 1 and not value.is_graph_input()


def _node(node: ir.Node, kinds: Mapping[str, str]) -> dict[str, Any]:
    name = str(node.name or node.outputs[0].name)
    rotary = "rope" if node.op_type == "RotaryEmbedding" else ""
    return {
        "op": node.op_type,
        "name": name,
        "shape": _shape(node.outputs[0]),
        "note": _note(node),
        "kind": kinds.get(name, rotary or ("values" if node.op_type == "Attention" else "")),
    }


def _note(node: ir.Node) -> str:
    words = []
    for name in _ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is None or attribute.is_ref():
            continue
        if name == "to":
            words.append(f"to {ir.DataType(attribute.as_int()).name.lower()}")
        elif name in _SAID_BY_ABSENCE and not attribute.value:
            continue
        elif attribute.type == ir.AttributeType.FLOAT:
            words.append(f"{name} {attribute.as_float():.4g}")
        elif attribute.type == ir.AttributeType.INT:
            words.append(f"{name} {attribute.as_int()}")
        elif attribute.type == ir.AttributeType.INTS:
            words.append(f"{name} {' '.join(map(str, attribute.as_ints()))}")
    scalars = [v for v in node.inputs[1:] if node.op_type in ("Mul", "Div", "Add") and _number(v) is not None]
    words += [f"{_number(v):.4g}" for v in scalars]
    return ", ".join(words)


def _number(value: ir.Value | None) -> float | None:
    held = array(value) if value is not None else None
    return float(held.reshape(-1)[0]) if held is not None and held.size == 1 else None


def _shape(value: ir.Value) -> str:
    known = dims(value)
    return "" if known is None else "\u00d7".join(str(size) for size in known) or "scalar"
