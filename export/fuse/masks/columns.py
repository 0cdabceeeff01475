"""Sinks: columns beside the keys are keys of zeros, whose logits the mask gives and whose values are zeros.

`softmax([QK^T + M | s])` cut back to the keys and multiplied with V is `softmax(Q[K; 0]^T + [M | s]) [V; 0]`.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.fuse.scores import Stage
from export.graph.build import Builder
from export.graph.values import dims, made_by, rank


def beside(
    build: Builder,
    stage: Stage,
    mask: ir.Value | None,
    key: ir.Value,
    dtype: ir.DataType,
    four_axes_of: Callable[[ir.Value], ir.Value],
) -> ir.Value:
    """Returns the mask [., ., ., T] so far and a sink's columns as one mask [., ., ., T + n].

    Args:
        build: Where to insert.
        stage: The sink.
        mask: The mask so far, four axes, or None where nothing was masked.
        key: K as it enters the op, [B, Hkv, T, D].
        dtype: The element type of the mask.
        four_axes_of: Gives a tensor of the scores' axes the axes [B, H, S, T].
    """
    if stage.value is None:
        columns = build.constant(np.full((1, 1, 1, stage.width), stage.fill, dtype.numpy()))
    else:
        columns = four_axes_of(_narrow(stage.value))
        if columns.dtype != dtype:
            columns = build("Cast", columns, dtype=dtype, shape=columns.shape, to=int(dtype))
    keys = build("Shape", key, dtype=ir.DataType.INT64, start=2, end=3)
    mask = mask if mask is not None else build.number(0.0, dtype)
    wide = build("Concat", _lead(build, columns), keys, dtype=ir.DataType.INT64, axis=0)
    mask = build("Expand", mask, wide, dtype=dtype)
    tall = build("Concat", _lead(build, mask), build.axes(stage.width), dtype=ir.DataType.INT64, axis=0)
    columns = build("Expand", columns, tall, dtype=dtype)
    return build("Concat", *((mask, columns) if stage.keep_when else (columns, mask)), dtype=dtype, axis=3)


def with_rows(build: Builder, value: ir.Value, width: int, *, behind: bool) -> ir.Value:
    """Returns K or V, [B, Hkv, T, D], with `width` more rows of zeros behind or before its own."""
    dtype = value.dtype
    if dtype is None:
        raise TypeError("the contract knows the element types of K and V")
    lead = build("Shape", value, dtype=ir.DataType.INT64, start=0, end=2)
    size = build("Shape", value, dtype=ir.DataType.INT64, start=3, end=4)
    shape = build("Concat", lead, build.axes(width), size, dtype=ir.DataType.INT64, axis=0)
    zeros = build("Expand", build.number(0.0, dtype), shape, dtype=dtype)
    return build("Concat", *((value, zeros) if behind else (zeros, value)), dtype=dtype, axis=2)


def _lead(build: Builder, value: ir.Value) -> ir.Value:
    return build("Shape", value, dtype=ir.DataType.INT64, start=0, end=3)


def _narrow(value: ir.Value) -> ir.Value:
    """Returns what was expanded to `value`: a sink is one number a head, and broadcasts."""
    expand = made_by(value, "Expand")
    inner = expand.inputs[0] if expand is not None else None
    fits = inner is not None and rank(inner) == rank(value) and (dims(inner) or (0,))[-1:] == (dims(value) or ())[-1:]
    return inner if inner is not None and fits else value
