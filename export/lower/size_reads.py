"""Sizes are read where the data came from: reading one must not keep alive a tensor that nobody else reads.

`Shape(transpose(reshape(x)))` at one axis is `Shape(x)` at the axis it came from. ONNX Runtime moves every element for
a size otherwise: exports read sizes off queries whose heads were moved, and off keys repeated for grouped heads.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import array, attribute, dim, dims, integers, made_by, rank

_INT = ir.DataType.INT64
_CARRIED = frozenset({
    "Attention", "Cast", "Expand", "Identity", "Neg", "Reshape", "RotaryEmbedding", "Slice", "Softmax", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
"""What carries its first operand's sizes on. Operators that broadcast are left out: of two operands that name an axis
alike, one may be fed with 1."""
_DEPTH = 64


@dataclass(frozen=True)
class Size:
    """One axis of a tensor."""

    value: ir.Value
    axis: int


def read_sizes_early(graph: ir.Graph) -> int:
    """Lets Shapes of one axis, and Gathers of one entry of a vector of sizes, read the tensor the size came from.

    Returns:
        How many read another tensor now.
    """
    changed = 0
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Shape", "Gather"):
            continue
        found = entry(node.outputs[0], 0) if _is_one(node) else None
        first = origin(found) if found is not None else None
        if first is None or (node.op_type == "Shape" and first.value is node.inputs[0]):
            continue
        if node.op_type == "Shape":
            node.replace_input_with(0, first.value)
            node.attributes["start"] = ir.AttrInt64("start", first.axis)
            node.attributes["end"] = ir.AttrInt64("end", first.axis + 1)
        elif not _reads(node, first):
            build = Builder(node, f"{node.name or node.outputs[0].name}/size")
            shape = ir.Shape([rank(first.value)])
            node.replace_input_with(0, build("Shape", first.value, dtype=_INT, shape=shape))
            scalar = rank(node.inputs[1]) == 0
            node.replace_input_with(1, build.constant(np.full(() if scalar else (1,), first.axis, np.int64)))
        else:
            continue
        changed += 1
    return changed


def entry(vector: ir.Value | None, index: int, depth: int = _DEPTH) -> Size | None:
    """Returns the axis whose size an entry of a vector of sizes (or the one of a scalar) is, or None where unsure."""
    node = made_by(vector, "Shape", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze") if depth else None
    if node is None or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    if node.op_type == "Shape":
        axes = range(rank(source) or 0)[slice(attribute(node, "start", 0), attribute(node, "end", 1 << 30))]
        return Size(source, axes[index]) if index < len(axes) else None
    if node.op_type == "Gather":
        chosen, length = integers(node.inputs[1]), dim(source, 0)
        if chosen is None or index >= len(chosen) or rank(source) != 1 or not isinstance(length, int):
            return None
        return entry(source, chosen[index] % length, depth - 1)
    if node.op_type in ("Unsqueeze", "Squeeze"):
        return entry(source, index, depth - 1) if index == 0 and (rank(source) or 0) <= 1 else None
    if node.op_type == "Slice":
        return _of_slice(node, index, depth)
    for part in node.inputs:
        length = dim(part, 0)
        if not isinstance(length, int):
            return None
        if index < length:
            return entry(part, index, depth - 1)
        index -= length
    return None


def origin(size: Size) -> Size:
    """Returns the axis that a size came from, as far as what made a tensor has an operand with a dimension so named."""
    value, axis = size.value, size.axis
    for _ in range(_DEPTH):
        name, node = dim(value, axis), made_by(value, *_CARRIED)
        source = node.inputs[0] if node is not None else None
        shape = dims(source)
        if source is None or shape is None or not isinstance(name, str) or name not in shape:
            break
        value, axis = source, axis if shape[axis : axis + 1] == (name,) else shape.index(name)
    return Size(value, axis)


def _of_slice(node: ir.Node, index: int, depth: int) -> Size | None:
    bounds = [integers(v) for v in node.inputs[1:]]
    length = dim(node.inputs[0], 0)
    if any(b is None or len(b) != 1 for b in bounds) or not isinstance(length, int) or rank(node.inputs[0]) != 1:
        return None
    start, end, *rest = (b[0] for b in bounds if b is not None)
    step = rest[1] if len(rest) > 1 else 1
    if step != 1:
        return None
    kept = range(length)[start:end]
    return entry(node.inputs[0], kept[index], depth - 1) if index < len(kept) else None


def _is_one(node: ir.Node) -> bool:
    """Says whether a Shape gives, or a Gather takes, one entry."""
    if node.op_type == "Shape":
        axes = range(rank(node.inputs[0]) or 0)
        return len(axes[slice(attribute(node, "start", 0), attribute(node, "end", 1 << 30))]) == 1
    chosen = array(node.inputs[1])
    return chosen is not None and chosen.size == 1 and attribute(node, "axis", 0) == 0


def _reads(node: ir.Node, size: Size) -> bool:
    """Says whether a Gather reads that axis already."""
    shape = made_by(node.inputs[0], "Shape")
    return shape is not None and shape.inputs[0] is size.value and entry(node.outputs[0], 0) == size
