"""Positional tensors at the positions of one step: computed for all positions at once, then cut to the step's rows.

What is positional (`tokens`) hangs on the number of tokens, through Shape, and on the padding mask. Written again with
the number of all positions in place of the number of new tokens, it is right for every position; the rows of the step
are cut out of it. A slice of a constant table is cut directly.
"""

from typing import Protocol

import onnx_ir as ir

from export.decode.tokens import Tokens, refused
from export.graph.build import Builder
from export.graph.values import array, dims, integers, label, made_by, rank

_INT = ir.DataType.INT64


class Frame(Protocol):
    """Where a step stands among all positions.

    Attributes:
        keeps_rank: Whether cut rows have as many axes as what they are cut from.
    """

    keeps_rank: bool

    def total(self, build: Builder) -> ir.Value:
        """Returns how many positions there are, int64 [1]."""

    def batch(self, build: Builder, size: ir.Value) -> ir.Value:
        """Returns what stands for the batch size in positional tensors, int64 [1]; `size` is the real one."""

    def mask(self, value: ir.Value, build: Builder) -> ir.Value:
        """Returns the padding mask over all positions, for the mask input of the graph."""

    def rows(self, build: Builder, value: ir.Value, axis: int, like: ir.Value) -> ir.Value:
        """Returns the step's rows of a tensor over all positions, where `like` is that of the graph as it came."""


class Positions:
    """Writes positional tensors of one graph anew, each once."""

    def __init__(self, tokens: Tokens, frame: Frame) -> None:
        self._tokens, self._frame = tokens, frame
        self._whole: dict[ir.Value, ir.Value] = {}
        self._rows: dict[tuple[ir.Value, int], ir.Value] = {}
        self._long: dict[ir.Value, bool] = {}

    def follows_length(self, value: ir.Value | None) -> bool:
        """Says whether a positional tensor would differ if there were more tokens."""
        if value is None or array(value) is not None:
            return False
        if value not in self._long:
            node = value.producer()
            if value in self._tokens.masks:
                long = True
            elif node is None:
                long = False
            elif node.op_type == "Shape":
                source = node.inputs[0]
                long = source in self._tokens.content or self.follows_length(source)
            else:
                long = any(self.follows_length(v) for v in node.inputs)
            self._long[value] = long
        return self._long[value]

    def whole(self, value: ir.Value, build: Builder) -> ir.Value:
        """Returns a positional tensor over all positions: where it has an axis of tokens, one row each."""
        if not self.follows_length(value):
            return value
        if value not in self._whole:
            self._whole[value] = self._written(value, build)
        return self._whole[value]

    def rows(self, value: ir.Value, axis: int, build: Builder) -> ir.Value:
        """Returns a positional tensor with the step's rows on an axis that counts tokens."""
        if (value, axis) not in self._rows:
            self._rows[value, axis] = self._cut(value, axis, build)
        return self._rows[value, axis]

    def _cut(self, value: ir.Value, axis: int, build: Builder) -> ir.Value:
        node = made_by(value, "Expand", "Unsqueeze")
        source = node.inputs[0] if node is not None else None
        if node is not None and source is not None:
            if node.op_type == "Expand" and rank(source) == rank(value) and axis in self._tokens.axes(source):
                return build(
                    "Expand", self.rows(source, axis, build), node.inputs[1], dtype=value.dtype, shape=value.shape
                )
            added, size = integers(node.inputs[1]), rank(value)
            if node.op_type == "Unsqueeze" and self._frame.keeps_rank and added is not None and size is not None:
                before = sum(a % size < axis for a in added)
                return build("Unsqueeze", self.rows(source, axis - before, build), node.inputs[1], dtype=value.dtype)
        table = self._table(value, axis)
        return self._frame.rows(build, self.whole(value, build) if table is None else table, axis, value)

    def _table(self, value: ir.Value, axis: int) -> ir.Value | None:
        """Returns the constant of which a tensor is the first rows on that axis, as many as there are tokens."""
        node = made_by(value, "Slice")
        if node is None or len(node.inputs) < 4:
            return None
        source, starts, axes = node.inputs[0], integers(node.inputs[1]), integers(node.inputs[3])
        steps = integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
        held = rank(source)
        if array(source) is None or held is None or starts != (0,) or steps != (1,) or axes is None:
            return None
        return source if len(axes) == 1 and axes[0] % held == axis else None

    def _written(self, value: ir.Value, build: Builder) -> ir.Value:
        node = value.producer()
        if value in self._tokens.masks:
            return self._frame.mask(value, build)
        if node is None:
            return value
        if node.op_type == "Shape" and node.inputs[0] in self._tokens.content:
            return self._shape(node, build)
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise refused(f"{label(node)} computes positions in a graph of its own.")
        inputs = [None if v is None else self.whole(v, build) for v in node.inputs]
        copied = build.copy(node, inputs)
        for old, new in zip(node.outputs, copied.outputs, strict=True):
            self._whole[old] = new
        return self._whole[value]

    def _shape(self, node: ir.Node, build: Builder) -> ir.Value:
        """Returns the shape of content as if it were there for all positions."""
        source = node.inputs[0]
        sizes = dims(source)
        if source is None or sizes is None:
            raise refused(f"{label(node)} reads a shape that is not known.")
        start = node.attributes["start"].as_int() if "start" in node.attributes else None
        end = node.attributes["end"].as_int() if "end" in node.attributes else None
        parts = []
        for axis in range(len(sizes))[start:end]:
            size = sizes[axis]
            if size == self._tokens.length:
                parts.append(self._frame.total(build))
            elif isinstance(size, int):
                parts.append(build.axes(size))
            elif axis in self._tokens.axes(source):
                raise refused(f"{label(node)} reads the size {size!r}, in which tokens are merged with another axis.")
            else:
                real = build("Shape", source, dtype=_INT, start=axis, end=axis + 1)
                parts.append(self._frame.batch(build, real) if size == self._tokens.batch else real)
        return parts[0] if len(parts) == 1 else build("Concat", *parts, dtype=_INT, axis=0)
