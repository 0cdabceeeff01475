"""Measuring a graph from inside: the largest magnitude of each half-precision tensor, and what losing it does.

The graph is widened to float32 and run on ONNX Runtime, with a maximum and a minimum of each tensor as further outputs:
two numbers a tensor, so that nothing large is kept. Scores inside an Attention are seen through its own output for
them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from export import onnx_truth
from export.lower import for_ort_check

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]
    Feeds = Mapping[str, npt.NDArray[np.generic]]

_FLOAT, _HALF, _BOOL = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BOOL
OVERFLOWS = 65520.0
"""The smallest magnitude that rounds to infinity in fp16: half a unit above its largest number, 65504."""

_SCORES_OUTPUT = 3


@dataclass(frozen=True)
class Tensor:
    """One half-precision tensor of a graph.

    Attributes:
        name: Its name; for the scores inside an Attention, that of the node and "/scores".
        node: The node that makes it; None for an input.
        inside: Whether it only exists inside an Attention.
    """

    name: str
    node: ir.Node | None
    inside: bool = False


def tensors(model: ir.Model) -> tuple[Tensor, ...]:
    """Returns the half-precision tensors of a graph that are inputs or computed, and the scores of its attentions."""
    found = [Tensor(str(v.name), None) for v in model.graph.inputs if v.dtype == _HALF]
    for node in model.graph:
        if node.op_type == "Constant":
            continue
        found += [Tensor(str(v.name), node) for v in node.outputs if v.name and v.dtype == _HALF]
        if _hides_scores(node):
            found.append(Tensor(_scores(node), node, inside=True))
    return tuple(found)


def extremes(model: ir.Model, of: Collection[Tensor]) -> "Callable[[Feeds], dict[str, tuple[float, float]]]":
    """Returns a function of feeds that gives the smallest and largest finite number of each tensor.

    Raises:
        UsageError: ONNX Runtime does not take the graph.
    """
    wide = _widened(model)
    values = _values(wide)
    zero = _number(wide.graph, "range/zero", 0.0)
    outputs = {}
    for index, tensor in enumerate(of):
        value = values[tensor.name]
        infinite = _append(wide.graph, "IsInf", _BOOL, f"range/{index}/infinite", value)
        finite = _append(wide.graph, "Where", _FLOAT, f"range/{index}/finite", infinite, zero, value)
        for op in ("ReduceMin", "ReduceMax"):
            made = _append(wide.graph, op, _FLOAT, f"range/{index}/{op}", finite, keepdims=0)
            wide.graph.outputs.append(made)
        outputs[tensor.name] = (f"range/{index}/ReduceMin", f"range/{index}/ReduceMax")
    run = _opened(wide)

    def measured(feeds: "Feeds") -> dict[str, tuple[float, float]]:
        got = run(feeds)
        return {name: (float(got[low]), float(got[high])) for name, (low, high) in outputs.items()}

    return measured


def plainly(model: ir.Model, stored: Collection[str] = ()) -> "Callable[[Feeds], Arrays]":
    """Returns a function of feeds that gives the outputs in float32, with the named tensors as fp16 stores them.

    Raises:
        UsageError: ONNX Runtime does not take the graph.
    """
    wide = _widened(model)
    values = _values(wide)
    for index, name in enumerate(stored):
        _store(wide.graph, values[name], f"range/stored.{index}")
    return _opened(wide)


def _store(graph: ir.Graph, value: ir.Value, name: str) -> None:
    uses, node = tuple(value.uses()), value.producer()
    half = ir.node("Cast", [value], {"to": int(_HALF)}, outputs=[ir.Value(name=f"{name}/half")], name=f"{name}/narrow")
    back = ir.node("Cast", [half.outputs[0]], {"to": int(_FLOAT)}, outputs=[ir.Value(name=name)], name=f"{name}/widen")
    if node is None:
        graph.insert_before(graph[0], [half, back])
    else:
        graph.insert_after(node, [half, back])
    back.outputs[0].type = ir.TensorType(_FLOAT)
    for use in uses:
        use.node.replace_input_with(use.idx, back.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = back.outputs[0]


def _hides_scores(node: ir.Node) -> bool:
    shown = len(node.outputs) > _SCORES_OUTPUT and bool(node.outputs[_SCORES_OUTPUT].name)
    half = bool(node.inputs) and node.inputs[0] is not None and node.inputs[0].dtype == _HALF
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx") and half and not shown


def _scores(node: ir.Node) -> str:
    return f"{node.name or node.outputs[0].name}/scores"


def _widened(model: ir.Model) -> ir.Model:
    """Returns the graph in float32, its attentions showing their scaled scores before any mask."""
    wide = onnx_truth.widened(model, _FLOAT)
    for before, node in zip(model.graph, list(wide.graph), strict=True):
        if _hides_scores(before):
            node.resize_outputs(_SCORES_OUTPUT + 1)
            for value in node.outputs:
                value.name = value.name or ""
            node.outputs[_SCORES_OUTPUT].name = _scores(before)
            node.outputs[_SCORES_OUTPUT].type = ir.TensorType(_FLOAT)
            node.attributes["qk_matmul_output_mode"] = ir.AttrInt64("qk_matmul_output_mode", 0)
    return wide


def _values(model: ir.Model) -> dict[str, ir.Value]:
    made = {str(v.name): v for node in model.graph for v in node.outputs if v.name}
    return {str(v.name): v for v in model.graph.inputs} | made


def _number(graph: ir.Graph, name: str, number: float) -> ir.Value:
    import numpy as np

    tensor = ir.tensor(np.float32(number), name=name)
    value = ir.Value(name=name, type=ir.TensorType(_FLOAT), shape=ir.Shape(()), const_value=tensor)
    graph.register_initializer(value)
    return value


def _append(graph: ir.Graph, op: str, dtype: ir.DataType, name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
    made = ir.Value(name=name, type=ir.TensorType(dtype))
    graph.append(ir.node(op, inputs, attributes, outputs=[made], name=name))
    return made


def _opened(model: ir.Model) -> "Callable[[Feeds], Arrays]":
    session = onnx_truth.session(for_ort_check(model))

    def run(feeds: "Feeds") -> "Arrays":
        half = ("float16", "bfloat16")
        return session({n: x.astype("float32") if x.dtype.name in half else x for n, x in feeds.items()})

    return run
