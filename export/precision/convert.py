"""A float32 graph as fp16 or bf16: the policy's decisions written into a copy of it.

Inputs and outputs take the precision too, as those of a PyTorch module do that is converted before it is exported; an
input that only makes angles of sines and cosines (a diffusion model's time step) stays float32.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.errors import UsageError
from export.graph import functions, shapes
from export.precision import TYPES
from export.precision.policy import Level, Policy, is_float

_FLOAT = ir.DataType.FLOAT
_KEPT_IN_MEMORY = 1 << 24
"""Bytes up to which a converted weight is kept; larger ones are converted again when they are read, or written."""


@dataclass(frozen=True)
class Converted:
    """A converted graph and what there is to know about it.

    Attributes:
        model: The graph in half precision.
        plain: The same graph before, in float32: functions written out, types inferred.
        narrowed: Names of its tensors (inputs, weights and results) that are half precision now.
        wide: Names of the nodes that compute in float32, with their operators.
    """

    model: ir.Model
    plain: ir.Model
    narrowed: frozenset[str]
    wide: tuple[tuple[str, str], ...]

    def note(self, dtype: str) -> str:
        """Returns one sentence for the report."""
        ops = sorted({op for _, op in self.wide})
        shown = ", ".join(ops[:8]) + (", ..." if len(ops) > 8 else "")
        kept = f"{len(self.wide)} nodes stay in fp32 ({shown})" if ops else "no node stays in fp32"
        return f"The file computes in fp32 and was converted to {dtype}, its inputs and outputs too; {kept}."


def convert(model: ir.Model, dtype: str) -> Converted:
    """Returns a float32 model converted to "fp16" or "bf16"; the model itself is not changed.

    Raises:
        UsageError: A weight of a matrix product is beyond fp16's range, or the type of a tensor cannot be told.
    """
    to = TYPES[dtype]
    plain = model.clone()
    functions.inline(plain)
    shapes.infer(plain)
    _refuse_untyped(plain.graph)
    work = plain.clone()
    policy = Policy(work.graph, to)
    _Writer(work.graph, policy, to, dtype).write()
    narrowed = {v.name for v, level in policy.levels.items() if level == Level.HALF and v.name}
    narrowed |= {n for n, v in work.graph.initializers.items() if v.dtype == to and n in plain.graph.initializers}
    wide = [(n.name or "", n.op_type) for n, run in policy.runs.items() if run == Level.WIDE and n.op_type != "Cast"]
    return Converted(work, plain, frozenset(narrowed), tuple(wide))


class _Writer:
    """Rewrites one graph in place."""

    def __init__(self, graph: ir.Graph, policy: Policy, to: ir.DataType, dtype: str) -> None:
        self._graph, self._policy, self._to, self._dtype = graph, policy, to, dtype
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {v.name for node in graph for v in node.outputs} | set(graph.initializers)
        self._names |= {v.name for v in graph.inputs}

    def write(self) -> None:
        policy, nodes = self._policy, list(self._graph)
        outputs = [v for v in self._graph.outputs if is_float(v)]
        for value, level in policy.levels.items():
            if level == Level.HALF:
                value.type = ir.TensorType(self._to)
        for node in nodes:
            self._read(node)
            if policy.runs.get(node) == Level.HALF:
                to = node.attributes.get("to")
                if node.op_type == "Cast" and to is not None and to.as_int() == int(_FLOAT):
                    node.attributes["to"] = ir.AttrInt64("to", int(self._to))
        for value in dict.fromkeys(outputs):
            self._put_out(value)
        unused = [n for n, v in self._graph.initializers.items() if not v.uses() and not v.is_graph_output()]
        for name in unused:
            if not any(v.name == name for v in self._graph.inputs):
                del self._graph.initializers[name]
        self._restore_names()

    def _read(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or not self._ours(value):
                continue
            half = self._policy.needs(node, index)
            if half is not None:
                node.replace_input_with(index, self._as(value, self._to if half else _FLOAT, node))
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                for inner in ir.traversal.RecursiveGraphIterator(body):
                    for index, value in enumerate(inner.inputs):
                        if value is not None and value.graph is self._graph and self._ours(value):
                            inner.replace_input_with(index, self._as(value, _FLOAT, node))

    def _ours(self, value: ir.Value) -> bool:
        return is_float(value) or value in self._policy.levels

    def _as(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._cast:
            constant = value.const_value
            if constant is not None and dtype == self._to:
                self._cast[value, dtype] = self._weight(value, constant)
            else:
                self._cast[value, dtype] = self._cast_node(value, dtype, before)
        return self._cast[value, dtype]

    def _weight(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        self._refuse_overflow(value, tensor)
        to, name = self._to, self._free(f"{value.name}/{self._dtype}")

        def made(tensor: ir.TensorProtocol = tensor) -> ir.TensorProtocol:
            with np.errstate(over="ignore"):
                return ir.Tensor(tensor.numpy().astype(to.numpy()), name=name)

        size = tensor.size * 2
        held = ir.LazyTensor(made, to, ir.Shape(tensor.shape.numpy()), name=name, cache=size <= _KEPT_IN_MEMORY)
        weight = ir.Value(name=name, type=ir.TensorType(to), shape=ir.Shape(tensor.shape.numpy()), const_value=held)
        self._graph.register_initializer(weight)
        return weight

    def _refuse_overflow(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        largest = max((float(np.abs(part[np.isfinite(part)]).max(initial=0)) for part in _parts(tensor)), default=0.0)
        if largest > float(self._to.max):
            raise UsageError(
                f"The weight {value.name!r} reaches {largest:.6g}, beyond {self._dtype}'s largest number "
                f"{float(self._to.max):.6g}. Convert to bf16 (--dtype bf16), or rescale the weight."
            )

    def _cast_node(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        name = self._free(f"{value.name}/{'fp32' if dtype == _FLOAT else self._dtype}")
        out = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[out], name=f"{name}/Cast")
        maker = value.producer()
        if maker is not None:
            cast.metadata_props.update(maker.metadata_props)
            self._graph.insert_after(maker, cast)
        else:
            self._graph.insert_before(self._graph[0], cast)
        return out

    def _put_out(self, value: ir.Value) -> None:
        """Makes a graph output half precision, under its own name."""
        if value.dtype == self._to:
            return
        cast = self._as(value, self._to, None)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = cast
        name, value.name = value.name, self._free(f"{value.name}/fp32")
        cast.name = name

    def _restore_names(self) -> None:
        """Gives a weight that is needed in half precision only the name it had."""
        for (value, dtype), weight in self._cast.items():
            if dtype == self._to and weight.is_initializer() and value.name not in self._graph.initializers:
                maker = value.producer()
                if maker is None and value.name is not None:
                    self._graph.initializers.pop(str(weight.name))
                    weight.name = value.name
                    self._graph.register_initializer(weight)
                elif maker is not None and not value.uses() and len(maker.outputs) == 1 and maker.op_type == "Constant":
                    self._graph.remove(maker)

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self._names:
            number += 1
            free = f"{name}.{number}"
        self._names.add(free)
        return free


def _bodies(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _parts(tensor: ir.TensorProtocol) -> Iterable[np.ndarray]:
    flat = tensor.numpy().reshape(-1)
    return (flat[i : i + (1 << 22)] for i in range(0, flat.size, 1 << 22))


def _refuse_untyped(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if value.name and value.dtype is None and (value.uses() or value.is_graph_output()):
                raise UsageError(
                    f"The type of {value.name!r}, which node {node.name!r} ({node.op_type}) makes, cannot be told, so "
                    "the file cannot be converted. Export it in the precision you want, or leave --dtype out."
                )
