"""RoPE tables: from cos and sin as wide as the channels to the half-width caches RotaryEmbedding takes.

A table may be narrowed only if its two lanes are provably equal: a constant whose halves agree, a Concat of one tensor
with itself, or elementwise arithmetic on such tables.
"""

import numpy as np
import onnx_ir as ir

from export.fuse.rotary_embedding.lanes import Pairing, join, last_axis, slice_of_last
from export.graph.build import Builder
from export.graph.values import Dim, array, attribute, dim, dims, integers, made_by, rank, same, uniform

_ELEMENTWISE = ("Cos", "Sin", "Cast", "Neg", "Reciprocal", "Sqrt", "Exp", "Identity")
_ARITHMETIC = ("Mul", "Div", "Pow", "Add", "Sub")


class Tables:
    """Narrows tables, each once."""

    def __init__(self, pairing: Pairing, build: Builder, known: dict[tuple[ir.Value, str], ir.Value]) -> None:
        self._pairing = pairing
        self._build = build
        self._known = known

    def narrow(self, value: ir.Value, depth: int = 12) -> ir.Value | None:
        """Returns the table with half the channels, or None where its lanes are not provably equal."""
        key = (value, self._pairing)
        if key not in self._known:
            found = self._narrow(value, depth) if depth else None
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def _narrow(self, value: ir.Value, depth: int) -> ir.Value | None:
        if uniform(value) is not None and (dim(value, -1) == 1 or not rank(value)):
            return value
        data = array(value)
        if data is not None:
            return self._constant(data)
        piece = concat_part(value)
        if piece is not None:
            return self.narrow(piece, depth - 1)
        joined = join(value)
        if joined is not None:
            return joined.first if joined.pairing == self._pairing and same(joined.first, joined.second) else None
        repeated = self._repeated(value)
        if repeated is not None:
            return repeated
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in _ELEMENTWISE:
            return self._rebuild(node, (0,), depth)
        if node.op_type in _ARITHMETIC:
            return self._arithmetic(node, depth)
        if node.op_type in ("Unsqueeze", "Squeeze", "Slice", "Gather", "Transpose", "Expand"):
            return self._rebuild(node, (0,), depth) if self._keeps_channels(node) else None
        return None

    def _constant(self, data: np.ndarray) -> ir.Value | None:
        if data.ndim == 0 or data.shape[-1] % 2:
            return None
        half = data.shape[-1] // 2
        one, two = (
            (data[..., :half], data[..., half:]) if self._pairing == "half" else (data[..., 0::2], data[..., 1::2])
        )
        return self._build.constant(np.ascontiguousarray(one)) if np.array_equal(one, two) else None

    def _repeated(self, value: ir.Value) -> ir.Value | None:
        """`repeat_interleave(f, 2)`: f with a new last axis, expanded to 2 and merged; one axis before for halves."""
        reshape = made_by(value, "Reshape")
        expand = made_by(reshape.inputs[0], "Expand", "Tile") if reshape is not None else None
        wide = dims(expand.outputs[0]) if expand is not None else None
        shape = dims(value)
        if expand is None or wide is None or shape is None or len(wide) != len(shape) + 1 or wide[:-2] != shape[:-1]:
            return None
        unsqueeze = made_by(expand.inputs[0], "Unsqueeze")
        axes = integers(unsqueeze.inputs[1]) if unsqueeze is not None else None
        inner = unsqueeze.inputs[0] if unsqueeze is not None else None
        if inner is None or axes is None:
            return None
        at = len(wide) - 1 if self._pairing == "interleaved" else len(wide) - 2
        others = sorted(axis % len(wide) for axis in axes if axis % len(wide) != at)
        narrow = wide[:at] + wide[at + 1 :]
        if len(others) + 1 != len(axes) or wide[at] != 2 or any(axis > at for axis in others):
            return None
        if others:
            inner = self._build(
                "Unsqueeze", inner, self._build.axes(*others), dtype=inner.dtype, shape=ir.Shape(narrow)
            )
        return inner if dims(inner) == narrow else None

    def _arithmetic(self, node: ir.Node, depth: int) -> ir.Value | None:
        width = dim(node.outputs[0], -1)
        wide = tuple(i for i, v in enumerate(node.inputs) if v is not None and rank(v) and dim(v, -1) == width)
        if not wide or any(dim(v, -1) not in (1, width) for v in node.inputs if v is not None and rank(v)):
            return None
        return self._rebuild(node, wide, depth)

    def _keeps_channels(self, node: ir.Node) -> bool:
        source, result = node.inputs[0], node.outputs[0]
        length = rank(source)
        if length is None or dim(source, -1) != dim(result, -1) or dim(source, -1) is None:
            return False
        if node.op_type == "Slice":
            axes = integers(node.inputs[3]) if len(node.inputs) > 3 else None
            return axes is not None and all(a % length != length - 1 for a in axes)
        if node.op_type == "Gather":
            return attribute(node, "axis", 0) % length != length - 1
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            return perm is not None and perm.as_ints()[-1] == length - 1
        if node.op_type in ("Unsqueeze", "Squeeze"):
            axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
            after = rank(result)
            wide = after if node.op_type == "Unsqueeze" else length
            return axes is not None and wide is not None and all(a % wide != wide - 1 for a in axes)
        return False  # Expand writes its channels into a shape operand

    def _rebuild(self, node: ir.Node, at: tuple[int, ...], depth: int) -> ir.Value | None:
        """Repeats a node on the narrowed inputs at positions `at`."""
        inputs = list(node.inputs)
        for index in at:
            source = inputs[index]
            narrowed = self.narrow(source, depth - 1) if source is not None else None
            if narrowed is None:
                return None
            inputs[index] = narrowed
        shape = dims(node.outputs[0])
        placed = None if shape is None else ir.Shape([*shape[:-1], _halved(shape[-1])])
        attributes = {name: a.value for name, a in node.attributes.items()}
        return self._build(node.op_type, *inputs, dtype=node.outputs[0].dtype, shape=placed, **attributes)


def _halved(width: Dim) -> Dim:
    return width // 2 if isinstance(width, int) else width


def concat_part(value: ir.Value) -> ir.Value | None:
    """Returns the tensor that a Split or Slice takes whole out of a Concat on the last axis, or None."""
    piece = slice_of_last(value)
    concat = made_by(piece[0], "Concat") if piece is not None else None
    if piece is None or concat is None or piece[3] != 1 or not last_axis(concat, attribute(concat, "axis", 0)):
        return None
    at = 0
    for part in concat.inputs:
        width = dim(part, -1)
        if not isinstance(width, int):
            return None
        if (at, at + width) == (piece[1], piece[2]):
            return part
        at += width
    return None
