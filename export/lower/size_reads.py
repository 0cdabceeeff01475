"""Sizes are read where the data came from: reading one must not keep alive a Transpose that nobody else reads.

`Shape(transpose(reshape(x)))` at one axis is `Shape(x)` at the axis it came from. ONNX Runtime moves every element for
a size otherwise: a Reshape of a graph's input is a copy, too.
"""

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import attribute, dim, dims, integers, made_by, permutation

_INT = ir.DataType.INT64


def read_sizes_before_moves(graph: ir.Graph) -> None:
    """Lets every Shape of one axis, and every Gather of one axis from a Shape, read the unmoved tensor."""
    for node in list(graph):
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        moved = node.inputs[0]
        count = len(moved.shape) if moved.shape is not None else None
        if count is None or made_by(moved, "Transpose", "Reshape", "RotaryEmbedding") is None:
            continue
        start = range(count)[slice(attribute(node, "start", 0), attribute(node, "end", count))]
        if len(start) == 1:
            value, axis = origin(moved, start[0])
            if value is not moved:
                node.replace_input_with(0, value)
                node.attributes["start"] = ir.AttrInt64("start", axis)
                node.attributes["end"] = ir.AttrInt64("end", axis + 1)
            continue
        for user, at in list(node.outputs[0].uses()):
            chosen = integers(user.inputs[1]) if user.op_type == "Gather" and at == 0 else None
            if chosen is None or len(chosen) != 1 or not -len(start) <= chosen[0] < len(start):
                continue
            value, axis = origin(moved, start[chosen[0]])
            if value is not moved:
                build = Builder(user, f"{user.name or user.outputs[0].name}/size")
                place = build.constant(np.full(() if not _is_vector(user.inputs[1]) else (1,), axis, np.int64))
                whole = build("Shape", value, dtype=_INT, shape=ir.Shape([len(value.shape or ())]))
                user.replace_input_with(0, whole)
                user.replace_input_with(1, place)


def origin(value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """Returns the tensor that an axis of `value` came from through moves, and which of its axes has that size."""
    while True:
        node = made_by(value, "Transpose", "Reshape", "RotaryEmbedding")
        source = node.inputs[0] if node is not None else None
        if node is None or source is None or source.shape is None:
            return value, axis
        if node.op_type == "Transpose":
            order = permutation(node)
            if order is None:
                return value, axis
            value, axis = source, order[axis]
            continue
        if node.op_type == "RotaryEmbedding":
            if dims(source) is None or len(source.shape) != len(value.shape or ()):
                return value, axis
            value = source
            continue
        size = dim(value, axis)
        same = [i for i, other in enumerate(dims(source) or ()) if size is not None and other == size]
        if not same:
            return value, axis
        value, axis = source, axis if axis in same else same[0]


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 1
