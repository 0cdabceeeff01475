"""Law: what can be computed now is a constant. Shapes that are known, and small arithmetic on constants.

The TorchScript exporter writes `1/sqrt(head_size)` as six nodes on the shape of a tensor; after this law, a number.
"""

from functools import lru_cache

import numpy as np
import onnx_ir as ir

from export.graph.values import array, attribute, dims, integers, made_by

_LIMIT = 1 << 16
"""Largest constant, in elements, that folding may read or make: weights are left alone, the file does not grow."""

_SMALL = 1 << 12
"""Bytes up to which the inputs of a node are compared with those of nodes computed before."""

_NEVER = {"Constant", "If", "Loop", "Scan", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
_NEVER |= {"Multinomial", "Bernoulli", "Dropout", "QuantizeLinear", "DequantizeLinear"}


def fold(graph: ir.Graph) -> int:
    """Replaces every node of `graph` whose outputs are known by constants; returns how many."""
    folded = 0
    for node in graph:
        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        result = _known_shape(node)
        if result is None:
            result = _computed(node)
        if result is not None and result.size <= _LIMIT:
            _become(graph, node, result)
            folded += 1
    return folded


def _become(graph: ir.Graph, node: ir.Node, data: np.ndarray) -> None:
    old = node.outputs[0]
    tensor = ir.Tensor(np.ascontiguousarray(data) if data.ndim else data, name=old.name)
    new = ir.Value(name=old.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(data.shape), const_value=tensor)
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[new], name=node.name)
    graph.insert_before(node, constant)
    old.name = f"{old.name}/folded"
    old.replace_all_uses_with(new)
    new.name = tensor.name
    graph.remove(node, safe=True)


def _known_shape(node: ir.Node) -> np.ndarray | None:
    """Shape of known dimensions; or one known dimension gathered from a Shape whose others are symbols."""
    if node.op_type == "Shape":
        found = dims(node.inputs[0])
        if found is None:
            return None
        part = _shape_part(node, found)
        return np.asarray(part, np.int64) if all(isinstance(d, int) for d in part) else None
    if node.op_type in ("Gather", "Slice"):
        shape = made_by(node.inputs[0], "Shape")
        found = dims(shape.inputs[0]) if shape is not None else None
        if shape is None or found is None:
            return None
        part = _shape_part(shape, found)
        if node.op_type == "Gather":
            index = array(node.inputs[1])
            chosen = None if index is None else _take(part, index)
        else:
            bounds = [integers(v) for v in node.inputs[1:3]]
            plain = len(node.inputs) < 5 or integers(node.inputs[4]) == (1,)
            if not plain or any(b is None or len(b) != 1 for b in bounds):
                return None
            chosen = np.asarray(part[slice(*(b[0] for b in bounds if b is not None))], dtype=object)
        if chosen is None or not all(isinstance(d, int) for d in chosen.reshape(-1)):
            return None
        return chosen.astype(np.int64)
    return None


def _shape_part(node: ir.Node, found: tuple[int | str, ...]) -> tuple[int | str, ...]:
    end = node.attributes.get("end")
    return found[attribute(node, "start", 0) : end.as_int() if end is not None else None]


def _take(part: tuple[int | str, ...], index: np.ndarray) -> np.ndarray | None:
    flat = [int(i) for i in index.reshape(-1)]
    if any(not -len(part) <= i < len(part) for i in flat):
        return None
    chosen = np.empty(len(flat), dtype=object)
    chosen[:] = [part[i] for i in flat]
    return chosen.reshape(index.shape)


def _computed(node: ir.Node) -> np.ndarray | None:
    if node.op_type in _NEVER or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return None
    inputs: list[np.ndarray | None] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
            continue
        if value.const_value is not None and value.const_value.size > _LIMIT:
            return None
        data = array(value)
        if data is None:
            return None
        inputs.append(data)
    expected = dims(node.outputs[0])
    if expected is not None and np.prod([d for d in expected if isinstance(d, int)], dtype=np.float64) > _LIMIT:
        return None
    return _evaluate(node, inputs)


def _evaluate(node: ir.Node, inputs: list[np.ndarray | None]) -> np.ndarray | None:
    """Runs one node in ONNX's reference implementation; blocks that repeat compute their constants once."""
    version = node.graph.opset_imports.get("", 23) if node.graph is not None else 23
    proto = ir.to_proto(node)
    names = list(proto.input)
    del proto.input[:], proto.metadata_props[:]
    proto.input.extend(f"x{at}" if names[at] else "" for at in range(len(names)))
    proto.name, proto.output[0] = "", "y"
    key = proto.SerializeToString(deterministic=True)
    small = sum(data.nbytes for data in inputs if data is not None) <= _SMALL
    given = tuple(None if data is None else (data.tobytes(), data.dtype, data.shape) for data in inputs)
    result = _run_once(key, version, given) if small else _run(key, version, tuple(inputs))
    dtype = node.outputs[0].dtype
    if result is None or dtype is None:
        return result
    return result.astype(dtype.numpy()) if result.dtype != dtype.numpy() else result


@lru_cache(maxsize=1024)
def _run_once(
    node: bytes, version: int, given: tuple[tuple[bytes, np.dtype, tuple[int, ...]] | None, ...]
) -> np.ndarray | None:
    arrays = (None if g is None else np.frombuffer(g[0], g[1]).reshape(g[2]) for g in given)
    return _run(node, version, tuple(arrays))


def _run(node: bytes, version: int, inputs: tuple[np.ndarray | None, ...]) -> np.ndarray | None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto.FromString(node)
    named = {name: data for name, data in zip(proto.input, inputs, strict=True) if data is not None}
    infos = [onnx.ValueInfoProto(name=name) for name in named]
    graph = onnx.GraphProto(node=[proto], name="fold", input=infos, output=[onnx.ValueInfoProto(name="y")])
    model = onnx.ModelProto(ir_version=10, graph=graph, opset_import=[onnx.OperatorSetIdProto(version=version)])
    try:
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(model).run(None, named)
    except Exception:  # not every operator and type has a reference implementation; then it simply stays
        return None
    if not isinstance(result, np.ndarray | np.generic):
        return None
    found = np.array(result)
    found.flags.writeable = False  # it may be kept for the next node like this one
    return found
