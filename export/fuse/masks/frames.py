"""Moves a tensor along with the axes of the scores it was applied to.

Axes that were moved are moved back. Merging or splitting the axes before queries and keys ([B*H, S, T] and
[B, H, S, T], windows, rows laid end to end) must reshape a mask in the same way, after its broadcast axes were written
out; only those that are merged are.
"""

import numpy as np
import onnx_ir as ir

from export.fuse.axes import Block
from export.fuse.scores import Factor, Stage
from export.graph.build import Builder
from export.graph.values import Dim, dims


def place(build: Builder, stage: Stage | Factor, block: Block, home: int) -> ir.Value:
    """Returns a stage's tensor so that it broadcasts over the scores in the frame that the fused op works in.

    Args:
        build: Where to insert.
        stage: A stage with a tensor of known shape.
        block: The block it belongs to.
        home: That frame, counted in the layout of the block's weights.
    """
    value, frame = stage.value, stage.layout.frame
    if value is None:
        raise TypeError("a stage without a tensor has nothing to place")
    shape = dims(value)
    if not stage.layout.straight and shape is not None and any(d != 1 for d in shape):
        value, shape = _full_rank(build, value, shape, len(frame))
        back = [stage.layout.perm.index(axis) for axis in range(len(frame))]
        shape = tuple(shape[axis] for axis in back)
        value = build("Transpose", value, dtype=value.dtype, shape=ir.Shape(shape), perm=back)
    frames = block.weights.layout.frames
    if frame == frames[home] or shape is None:
        return value
    if all(d == 1 for d in shape[:-1]):
        flat = ir.Shape(shape[-1:])
        return value if len(shape) < 2 else build("Reshape", value, build.axes(-1), dtype=value.dtype, shape=flat)
    kept = 2 if all(between[-2] == frame[-2] for between in frames[: home + 1]) else 1
    value, shape = _full_rank(build, value, shape, len(frame))
    tail = shape[-kept:]
    if shape[:-kept] != frame[:-kept]:
        value = _written_out(build, value, _column(build, stage, block, kept), (*frame[:-kept], *tail))
    target = block.weights.layout.targets[home - 1]
    if target is None:
        raise TypeError("the contract lets no mask move by a reshape without a shape of its own")
    placed = ir.Shape((*frames[home][:-kept], *tail))
    return build("Reshape", value, _with_tail(build, target, value, kept), dtype=value.dtype, shape=placed)


def _full_rank(build: Builder, value: ir.Value, shape: tuple[Dim, ...], rank: int) -> tuple[ir.Value, tuple[Dim, ...]]:
    missing = rank - len(shape)
    if not missing:
        return value, shape
    shape = (1,) * missing + shape
    return build("Unsqueeze", value, build.axes(*range(missing)), dtype=value.dtype, shape=ir.Shape(shape)), shape


def _column(build: Builder, stage: Stage | Factor, block: Block, kept: int) -> ir.Value:
    """Returns zeros as large as the scores' merged axes at the stage, with 1 for each of the `kept` last axes."""
    operand = block.scores.query
    lead = build("Shape", operand.value, dtype=ir.DataType.INT64, start=0, end=-2)
    parts = [lead]
    if kept == 1:
        last_two = build("Shape", operand.value, dtype=ir.DataType.INT64, start=-2)
        row_axis = build.axes(1 if operand.swapped else 0)
        parts.append(build("Gather", last_two, row_axis, dtype=ir.DataType.INT64, axis=0))
    target = build("Concat", *parts, build.axes(*(1,) * kept), dtype=ir.DataType.INT64, axis=0)
    zeros = build("Expand", build.constant(np.zeros((), bool)), target, dtype=ir.DataType.BOOL)
    for operand_shape in [target for target in stage.layout.targets[-1:] if target is not None]:
        head = build("Slice", operand_shape, build.axes(0), build.axes(-kept), dtype=ir.DataType.INT64)
        after = build("Concat", head, build.axes(*(1,) * kept), dtype=ir.DataType.INT64, axis=0)
        zeros = build("Reshape", zeros, after, dtype=ir.DataType.BOOL)
    return zeros


def _written_out(build: Builder, value: ir.Value, zeros: ir.Value, shape: tuple[Dim, ...]) -> ir.Value:
    """Returns `value` broadcast over `zeros`."""
    dtype = value.dtype
    if dtype is None:
        raise TypeError("the element type of a mask is known once its shape is")
    if dtype == ir.DataType.BOOL:
        return build("Or", value, zeros, dtype=dtype, shape=ir.Shape(shape))
    return build("Add", value, build("Cast", zeros, dtype=dtype, to=int(dtype)), dtype=dtype, shape=ir.Shape(shape))


def _with_tail(build: Builder, shape: ir.Value, value: ir.Value, kept: int) -> ir.Value:
    """Returns a shape operand whose last `kept` entries are those of `value`."""
    head = build("Slice", shape, build.axes(0), build.axes(-kept), dtype=ir.DataType.INT64)
    tail = build("Shape", value, dtype=ir.DataType.INT64, start=-kept)
    return build("Concat", head, tail, dtype=ir.DataType.INT64, axis=0)
