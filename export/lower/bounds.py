"""How large a mask's numbers can get, as far as the graph proves it.

A mask that the graph makes from bounded pieces (a Where between constants, a looked-up bias table) needs no guard; one
that comes in as a graph input may hold anything.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.values import array

# fmt: off
_MOVES = frozenset({
    "Abs", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Neg", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
})
_COMPUTED = frozenset({
    "Attention", "Conv", "Gemm", "LayerNormalization", "MatMul", "RMSNormalization", "Sigmoid", "Softmax", "Tanh",
})
# fmt: on
ORDINARY = 1e4
"""Taken as the bound of what a network computes from its activations: masks of that kind are learned biases."""


@dataclass(frozen=True)
class Bound:
    """What the elements of a value can be.

    Attributes:
        finite: Bound of |x| over the finite elements; infinity where the graph proves none.
        infinite: Whether an element may be infinite.
    """

    finite: float
    infinite: bool


UNKNOWN = Bound(np.inf, True)


def bound(value: ir.Value | None) -> Bound:
    """Returns what the graph proves about the size of a value's elements."""
    return _bound(value, {}, 64)


def _bound(value: ir.Value | None, seen: dict[ir.Value, Bound], depth: int) -> Bound:
    if value is None or depth == 0:
        return UNKNOWN
    if value not in seen:
        seen[value] = _judge(value, seen, depth)
    return seen[value]


def _judge(value: ir.Value, seen: dict[ir.Value, Bound], depth: int) -> Bound:
    if value.dtype == ir.DataType.BOOL:
        return Bound(1.0, False)
    constant = array(value)
    if constant is not None:
        return _of_array(constant)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return UNKNOWN
    inputs = [_bound(v, seen, depth - 1) for v in _data_inputs(node)]
    largest = Bound(max((b.finite for b in inputs), default=np.inf), any(b.infinite for b in inputs))
    match node.op_type:
        case "Where" | "Max" | "Min":
            return largest
        case "Add" | "Sub" | "Sum":
            return Bound(sum(b.finite for b in inputs), largest.infinite)
        case "Mul":
            return UNKNOWN if largest.infinite else Bound(inputs[0].finite * inputs[1].finite, False)
        case "Div":
            divisor = array(node.inputs[1])
            smallest = 0.0 if divisor is None or divisor.size == 0 else float(np.abs(divisor.astype(np.float64)).min())
            return Bound(inputs[0].finite / smallest, inputs[0].infinite) if smallest > 0 else UNKNOWN
        case "Cast":
            to = ir.DataType(node.attributes["to"].as_int())
            limit = float(to.max) if to.is_floating_point() else np.inf
            return Bound(largest.finite, largest.infinite or largest.finite > limit)
        case "ConstantOfShape":
            fill = node.attributes.get("value")
            return Bound(0.0, False) if fill is None else _of_array(fill.as_tensor().numpy())
        case op if op in _MOVES:
            return largest
        case op if op in _COMPUTED:
            return Bound(ORDINARY, False)
    return UNKNOWN


def _of_array(data: np.ndarray) -> Bound:
    if data.size == 0 or data.dtype.kind == "b":
        return Bound(1.0, False)
    numbers = data if data.dtype in (np.float32, np.float64) else data.astype(np.float64)  # a mask can be large
    finite = np.isfinite(numbers)
    high, low = numbers.max(where=finite, initial=0.0), numbers.min(where=finite, initial=0.0)
    return Bound(max(float(high), -float(low)), not bool(finite.all()))


def _data_inputs(node: ir.Node) -> list[ir.Value | None]:
    """Returns the inputs whose numbers can reach the output (not shapes, axes, indices or conditions)."""
    inputs = list(node.inputs)
    if node.op_type == "Where":
        return inputs[1:]
    if node.op_type in ("Add", "Sub", "Sum", "Mul", "Max", "Min", "Concat"):
        return inputs
    if node.op_type == "Pad":
        return [inputs[0], *([inputs[2]] if len(inputs) > 2 and inputs[2] is not None else [])]
    return inputs[:1]
