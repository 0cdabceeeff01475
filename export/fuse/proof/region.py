"""Cuts the same region out of two versions of a graph: from tensors both have, to one tensor both have."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from export.graph.values import dims, graphs, made_by, rank

_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Cut:
    """What a walk back from an output met.

    Attributes:
        nodes: The nodes walked, in graph order once sorted by the caller.
        leaves: Tensors where it stopped, by name: their values matter.
        shaped: Tensors of which only the shape is read, by name.
        constants: Initializers used, by name.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    leaves: dict[str, ir.Value] = field(default_factory=dict)
    shaped: dict[str, ir.Value] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)


def by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Returns every named value of a model, inputs, initializers and outputs of nodes, by name."""
    found: dict[str, ir.Value] = {}
    for graph in graphs(model):
        for value in (*graph.inputs, *graph.initializers.values()):
            found[value.name or ""] = value
        for node in graph:
            for value in node.outputs:
                found[value.name or ""] = value
    found.pop("", None)
    return found


def settled(model: ir.Model) -> frozenset[str]:
    """Returns the names of vectors, and of conditions of any rank, that constants and sizes of tensors alone decide."""
    decided: set[ir.Value] = set()
    for graph in graphs(model):
        for node in graph:
            plain = node.op_type not in _RANDOM and not any(a.type in _BODIES for a in node.attributes.values())
            if made_by(node.outputs[0] if node.outputs else None, "Shape", "Size") is not None or (
                plain and all(v is None or v in decided or _constant(v) for v in node.inputs)
            ):
                decided.update(node.outputs)
    return frozenset(str(v.name) for v in decided if v.dtype == ir.DataType.BOOL or (rank(v) or 0) <= 1)


def _constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.producer() is None and not value.is_graph_input()


def cut(
    outputs: Iterable[ir.Value],
    stop: Callable[[ir.Value], bool],
    sized: Callable[[ir.Value], bool] = lambda _: True,
) -> Cut:
    """Walks back from `outputs` to values where `stop` says so, to inputs and to constants.

    The input of a Shape is not walked through where its size can be chosen (`sized`): only its dimensions matter.
    """
    found = Cut()
    seen: set[ir.Value] = set()
    walked: dict[ir.Node, None] = {}
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        name = str(value.name)
        if value.const_value is not None and node is None and not value.is_graph_input():
            found.constants[name] = value
        elif node is None or (node.op_type != "Constant" and stop(value)):
            found.leaves[name] = value
        else:
            walked[node] = None
            reads_shape = made_by(value, "Shape", "Size") is not None
            for source in _reads(node):
                if reads_shape and sized(source):
                    found.shaped[str(source.name)] = source
                else:
                    waiting.append(source)
    found.nodes = list(walked)
    for name in (*found.leaves, *found.constants):
        found.shaped.pop(name, None)
    inside = {str(v.name) for node in found.nodes for v in node.outputs}
    for name in [n for n in found.shaped if n in inside]:
        del found.shaped[name]
    return found


def dependent(leaves: Mapping[str, ir.Value], before: Mapping[str, ir.Value]) -> frozenset[str]:
    """Returns the names of the leaves that the graph before computes from other leaves; drawn, they are unrelated."""
    found = set()
    for name in leaves.keys() & before.keys():
        start = before[name]

        def stop(value: ir.Value, start: ir.Value = start) -> bool:
            return value is not start and str(value.name) in leaves

        met = cut([start], stop).leaves
        if met.keys() & (leaves.keys() - {name}):
            found.add(name)
    return frozenset(found)


def masks_of(mask: ir.Value, region: Cut) -> set[str]:
    """Returns the tensors a mask is made of that may hide a key; a product and its factors never do."""

    def product(value: ir.Value) -> bool:
        return made_by(value, "MatMul", "Einsum", "Gemm", "Conv") is not None

    found = cut([mask], lambda value: str(value.name) in region.leaves or product(value)).leaves
    return {
        name
        for name, value in found.items()
        if name in region.leaves and not any(product(source) for source in cut([value], product).leaves.values())
    }


def _reads(node: ir.Node) -> list[ir.Value]:
    """Returns what a node reads, what the graphs inside it capture included."""
    found = [v for v in node.inputs if v is not None]
    bodies = [a for a in node.attributes.values() if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)]
    for attr in bodies:
        for body in [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else attr.as_graphs():
            made = {v for n in body.all_nodes() for v in n.outputs} | set(body.inputs)
            found += [v for n in body.all_nodes() for v in n.inputs if v is not None and v not in made]
    return found


def to_model(
    region: Cut, outputs: Iterable[ir.Value], opset: int, dtype: ir.DataType = ir.DataType.FLOAT
) -> onnx.ModelProto:
    """Returns a region as a model of its own, computed in `dtype` where it was in that or less precision.

    What is proven is that two spellings mean the same; how precisely a backend computes them, parity checks.
    """
    order = {node: at for at, node in enumerate(_sorted(region.nodes))}
    proto = onnx.GraphProto(name="region")
    for node in sorted(region.nodes, key=order.__getitem__):
        proto.node.append(_widened(ir.to_proto(node), dtype))
        for value in node.outputs:
            if value.dtype is not None:
                info = onnx.helper.make_tensor_value_info(str(value.name), element_type(value, dtype), dims(value))
                proto.value_info.append(info)
    for name, value in region.constants.items():
        tensor = value.const_value
        if tensor is not None:
            data = tensor.numpy()
            data = _as_wide(data, tensor.dtype, dtype) if tensor.dtype in _narrower(dtype) else data
            proto.initializer.append(ir.to_proto(ir.tensor(data, name=name)))
            proto.value_info.append(onnx.helper.make_tensor_value_info(name, element_type(value, dtype), data.shape))
    for name, value in {**region.leaves, **region.shaped}.items():
        proto.input.append(onnx.helper.make_tensor_value_info(name, element_type(value, dtype), dims(value)))
    for value in outputs:
        proto.output.append(onnx.ValueInfoProto(name=str(value.name)))
    imports = [onnx.OperatorSetIdProto(version=opset), onnx.OperatorSetIdProto(domain="com.microsoft", version=1)]
    return onnx.ModelProto(ir_version=10, graph=proto, opset_import=imports)


def _narrower(dtype: ir.DataType) -> tuple[ir.DataType, ...]:
    return (*_HALF, ir.DataType.FLOAT) if dtype == ir.DataType.DOUBLE else _HALF


def _as_wide(data: np.ndarray, narrow: ir.DataType, wide: ir.DataType) -> np.ndarray:
    """Returns constants in a wider type, those that are deep in half precision as deep there.

    Beside -65504 a half precision score vanishes, and the sum of two is -inf. Both hold in float32 only for a number as
    near to the end of its range.
    """
    found = data.astype(wide.numpy())
    if narrow != ir.DataType.FLOAT16 or wide != ir.DataType.FLOAT:
        return found
    grown = data.astype(np.float64) * (float(wide.max) / float(narrow.max))
    deep = np.isfinite(found) & (np.abs(found) >= float(narrow.max) / 4.0)
    return np.where(deep, grown, found).astype(wide.numpy())


def element_type(value: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> int:
    """Returns the element type of a tensor in a region computed in `dtype`: that for a narrower one, else its own."""
    if value.dtype is None:
        raise ValueError(f"the element type of '{value.name}' is not known")
    return int(dtype if value.dtype in _narrower(dtype) else value.dtype)


def _sorted(nodes: list[ir.Node]) -> list[ir.Node]:
    """Orders nodes so that each comes after what it reads."""
    inside, done, result = set(nodes), set[ir.Node](), list[ir.Node]()
    for start in nodes:
        stack = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if node in done:
                continue
            if ready:
                done.add(node)
                result.append(node)
                continue
            stack.append((node, True))
            for value in _reads(node):
                source = value.producer()
                if source is not None and source in inside and source not in done:
                    stack.append((source, False))
    return result


def _widened(node: onnx.NodeProto, dtype: ir.DataType) -> onnx.NodeProto:
    """Rewrites types narrower than `dtype` in a node's attributes: Cast targets and constant tensors."""
    halves = [int(d) for d in _narrower(dtype)]
    for attr in node.attribute:
        if attr.name in ("to", "dtype", "softmax_precision") and attr.i in halves:
            attr.i = int(dtype)
        elif attr.type == onnx.AttributeProto.TENSOR and attr.t.data_type in halves:
            narrow = ir.from_proto(attr.t)
            data = _as_wide(narrow.numpy(), narrow.dtype, dtype)
            attr.t.CopyFrom(onnx.numpy_helper.from_array(data, attr.t.name))
        elif attr.type == onnx.AttributeProto.GRAPH:
            for inner in attr.g.node:
                _widened(inner, dtype)
    return node
