"""How far rounding carries a graph: honest runs of it in which each step's result falls on another grid.

A converted graph is judged by the float32 graph it was made from, never by itself.

Its truth is that graph in float64, the weights rounded first that the conversion rounds. Its yardstick is the same
graph in float32, attentions and rotations taken apart, with each tensor rounded that half precision stores: once as it
is, and on grids that lie otherwise between two powers of two, since one rounding may be exact by luck. A number beyond
the range is left as it is there: overflowing is an error and no rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from export import external_data, onnx_truth
from export.graph import shapes
from export.lower import for_ort_check
from export.precision.convert import Converted

if TYPE_CHECKING:
    Run = Callable[[onnx_truth.Feeds], onnx_truth.Arrays]

_SPELLED_OUT = ("Attention", "RotaryEmbedding")
"""Operators that an implementation may round inside of: between their steps, as ONNX writes them."""

GRID = "yardstick/grid"
"""Input of the yardstick, from 1 to 2: what each number is multiplied by before it is rounded, and divided by after."""

_FLOAT, _BOOL = ir.DataType.FLOAT, ir.DataType.BOOL
_MOVED = (_FLOAT, ir.DataType.FLOAT16)

_EXACT = frozenset(
    """
    Abs Cast CastLike Clip Concat Constant ConstantOfShape Dropout Expand Flatten Gather GatherElements GatherND
    Identity Max Min Neg Pad Range Relu Reshape ScatterElements ScatterND Slice Split Squeeze Tile TopK Transpose Trilu
    Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Operators that move numbers and round none."""


def with_rounded_weights(converted: Converted, to: ir.DataType) -> ir.Model:
    """Returns the graph before the conversion, in float32, its converted weights rounded to `to`."""
    model = converted.plain.clone()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name in converted.narrowed and tensor is not None and tensor.dtype == _FLOAT:
            value.const_value = _rounded(tensor, to)
    return model


def rounded(converted: Converted, to: ir.DataType) -> ir.Model:
    """Returns the graph before the conversion, in float32, with every tensor rounded that the conversion narrows."""
    before = {value.name for node in converted.plain.graph for value in node.outputs}
    model = _spelled_out(with_rounded_weights(converted, to))
    graph, limit = model.graph, _limit(model.graph, to)
    grid = ir.Value(name=GRID, type=ir.TensorType(_FLOAT), shape=ir.Shape(()))
    graph.inputs.append(grid)
    for node in list(graph):
        for value in node.outputs:
            if value.name in converted.narrowed or (value.name not in before and value.dtype == _FLOAT):
                _round_after(graph, node, value, (limit, grid), to)
    return model


def _spelled_out(model: ir.Model) -> ir.Model:
    """Returns a graph with its attentions and rotations written as the steps that ONNX defines them by."""
    import onnx.inliner

    used = [("", op) for op in _SPELLED_OUT if any(n.op_type == op and n.domain == "" for n in model.graph)]
    if not used or external_data.size(model) >= onnx_truth.LARGE:  # the tool takes no more than protobuf does
        return model
    proto = onnx.inliner.inline_selected_functions(ir.to_proto(model), used, inline_schema_functions=True)
    steps = ir.from_proto(proto)
    shapes.infer(steps)
    return steps


def shaken(model: ir.Model) -> ir.Model:
    """Returns a graph at its own types in which the input `GRID` moves each step's result by up to a unit in its last
    place; at 1 it is the graph as it was.

    Inputs need not be moved for it: a model of token ids has none that could be. In half precision each step's result
    is really stored so, where ONNX Runtime's CPU provider keeps float32 between operators it has no kernels for.
    """
    copy = model.clone()
    shapes.infer(copy)
    graph = copy.graph
    grid = ir.Value(name=GRID, type=ir.TensorType(_FLOAT), shape=ir.Shape(()))
    graph.inputs.append(grid)
    steps = [(n, v) for n in graph if n.op_type not in _EXACT for v in n.outputs if v.dtype in _MOVED and v.name]
    limits = {to: _limit(graph, to) for to in dict.fromkeys(v.dtype for _, v in steps) if to is not None}
    for node, value in steps:
        if value.dtype is not None:
            _round_after(graph, node, value, (limits[value.dtype], grid), value.dtype)
    return copy


def grids(run: "Run", draws: int) -> "tuple[Run, ...]":
    """Returns the yardstick's runs: rounded as it is, and on `draws` other grids."""
    scales = np.concatenate(([1.0], np.random.default_rng(0).uniform(1, 2, draws))).astype(np.float32)
    return tuple(partial(_on_grid, run, scale) for scale in scales)


def _on_grid(run: "Run", scale: np.float32, feeds: "onnx_truth.Feeds") -> "onnx_truth.Arrays":
    return run({**feeds, GRID: np.asarray(scale)})


def widened(model: ir.Model) -> onnx_truth.Truth:
    """Returns a way to run a graph with everything in float32, but its outputs; raises as `in_float32`."""
    return in_float32(onnx_truth.widened(model, _FLOAT), model)


def in_float32(model: ir.Model, like: ir.Model) -> onnx_truth.Truth:
    """Returns a way to run a graph that computes in float32 on ONNX Runtime, nothing optimised.

    Args:
        model: The graph.
        like: The graph whose types the outputs take.

    Raises:
        UsageError: ONNX Runtime does not take the graph.
    """
    types = [value.dtype.numpy() for value in like.graph.outputs if value.dtype]
    session = onnx_truth.session(for_ort_check(model))

    def run(feeds: "onnx_truth.Feeds") -> "onnx_truth.Arrays":
        half = ("float16", "bfloat16")
        made = session({n: x.astype(np.float32) if x.dtype.name in half else x for n, x in feeds.items()})
        return {name: x.astype(to) for (name, x), to in zip(made.items(), types, strict=True)}

    return onnx_truth.Truth(run, "float32 on ONNX Runtime, optimisations off")


def _rounded(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    def made() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(to.numpy()).astype(np.float32), name=tensor.name)

    return ir.LazyTensor(made, _FLOAT, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _limit(graph: ir.Graph, to: ir.DataType) -> ir.Value:
    tensor = ir.tensor(np.float32(float(to.max) / 2), name=f"yardstick/limit.{to.name}")
    value = ir.Value(name=tensor.name, type=ir.TensorType(_FLOAT), shape=ir.Shape(()), const_value=tensor)
    graph.register_initializer(value)
    return value


def _round_after(
    graph: ir.Graph, node: ir.Node, value: ir.Value, scales: tuple[ir.Value, ir.Value], to: ir.DataType
) -> None:
    uses, name = tuple(value.uses()), value.name
    nodes: list[ir.Node] = []

    def add(op: str, dtype: ir.DataType, *inputs: ir.Value) -> ir.Value:
        made = ir.Value(name=f"{name}/rounded.{len(nodes)}", type=ir.TensorType(dtype), shape=value.shape)
        attributes = {"to": int(dtype)} if op == "Cast" else {}
        nodes.append(ir.node(op, inputs, attributes, outputs=[made]))
        return made

    limit, grid = scales
    exact = value if value.dtype == _FLOAT else add("Cast", _FLOAT, value)
    within = add("LessOrEqual", _BOOL, add("Abs", _FLOAT, exact), limit)
    near = add("Mul", _FLOAT, exact, grid)
    if to != _FLOAT:
        near = add("Cast", _FLOAT, add("Cast", to, near))
    result = add("Where", _FLOAT, within, add("Div", _FLOAT, near, grid), exact)
    if value.dtype is not None and value.dtype != _FLOAT:
        result = add("Cast", value.dtype, result)
    graph.insert_after(node, nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
            value.name, result.name = f"{name}/exact", name
