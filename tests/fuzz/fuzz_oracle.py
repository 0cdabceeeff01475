"""An independent reading of a graph: numpy in float64, one function an operator, with error bounds (see fuzz_tensor).

It shares nothing with the fuser, its laws or its proofs, nor with ONNX Runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from fuzz_arithmetic import OPERATORS
from fuzz_tensor import FLOATS, Rounding, Tensor


@dataclass(frozen=True)
class Node:
    """What an operator's function sees of its node."""

    op: str
    attributes: Mapping[str, object]
    outputs: int
    rounding: Rounding
    opset: int
    constant: bool


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], rounding: Rounding) -> dict[str, Tensor]:
    """Returns every tensor of the main graph by name.

    Args:
        model: The model, without functions and subgraphs.
        feeds: Its inputs by name.
        rounding: Whether errors are bounded for its meaning or its element types, and what rows without keys give.
    """
    known: dict[str, Tensor] = {t.name: literal(ir.from_proto(t)) for t in model.graph.initializer}
    for value in model.graph.input:
        known[value.name] = given(feeds[value.name], ir.DataType(value.type.tensor_type.elem_type))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    with np.errstate(all="ignore"):
        for node in model.graph.node:
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise NotImplementedError(f"the oracle has no {node.domain}::{node.op_type}")
            inputs = [known[name] if name else None for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            constant = all(t is None or t.constant for t in inputs)
            seen = Node(node.op_type, attributes, len(node.output), rounding, opset, constant)
            found = OPERATORS[node.op_type](seen, *inputs)
            found = found if isinstance(found, tuple) else (found,)
            known.update({name: t for name, t in zip(node.output, found, strict=False) if name})
    return known


def literal(tensor: ir.TensorProtocol) -> Tensor:
    data = tensor.numpy()
    return Tensor(data.astype(np.float64) if tensor.dtype in FLOATS else _whole(data), tensor.dtype, constant=True)


def given(data: np.ndarray, kind: ir.DataType) -> Tensor:
    return Tensor(data.astype(np.float64) if kind in FLOATS else _whole(data), kind)


def _whole(data: np.ndarray) -> np.ndarray:
    return data if data.dtype == bool else data.astype(np.int64)
