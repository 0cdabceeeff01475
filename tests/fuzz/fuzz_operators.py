"""What operators that copy, select and lay out elements compute, and those of integers and conditions, in numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from fuzz_tensor import FLOATS, Tensor, bounds

OPERATORS: dict[str, Callable[..., Any]] = {}
"""By name; fuzz_arithmetic adds its own."""


def operator(*names: str) -> Callable:
    def register(function: Callable) -> Callable:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


# Elements that are copied, selected or laid out anew.


def axes_of(node, axes: Tensor | None, rank: int) -> tuple[int, ...] | None:
    found = axes.x.reshape(-1).tolist() if axes is not None else node.attributes.get("axes")
    return None if found is None else tuple(int(a) % rank for a in found)


@operator("Identity")
def _identity(node, a):
    return a


@operator("Dropout")
def _dropout(node, a, ratio=None, training=None):
    assert training is None or not training.x.any()
    return a, Tensor(np.ones(a.x.shape, bool), ir.DataType.BOOL)


@operator("Constant")
def _constant(node):
    (name, data), *_ = node.attributes.items()
    if name == "value":
        tensor = ir.from_proto(data)
        array, kind = tensor.numpy(), tensor.dtype
    else:
        array = np.asarray(data)
        kind = ir.DataType.FLOAT if array.dtype.kind == "f" else ir.DataType.INT64
    return Tensor(array.astype(np.float64) if kind in FLOATS else array, kind, constant=True)


@operator("Transpose")
def _transpose(node, a):
    return a.moved(lambda x: x.transpose(node.attributes.get("perm")))


@operator("Reshape")
def _reshape(node, a, shape):
    wanted = [int(d) for d in shape.x]
    if not node.attributes.get("allowzero", 0):
        wanted = [a.x.shape[at] if d == 0 else d for at, d in enumerate(wanted)]
    return a.moved(lambda x: x.reshape(wanted))


@operator("Flatten")
def _flatten(node, a):
    axis = node.attributes.get("axis", 1) % (a.x.ndim + 1)
    return a.moved(lambda x: x.reshape(int(np.prod(x.shape[:axis])), -1))


@operator("Unsqueeze")
def _unsqueeze(node, a, axes=None):
    return a.moved(lambda x: np.expand_dims(x, axes_of(node, axes, x.ndim + len(axes.x.reshape(-1)))))


@operator("Squeeze")
def _squeeze(node, a, axes=None):
    return a.moved(lambda x: x.squeeze(axes_of(node, axes, x.ndim)))


@operator("Expand")
def _expand(node, a, shape):
    return a.moved(lambda x: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.x))))


@operator("Tile")
def _tile(node, a, times):
    return a.moved(lambda x: np.tile(x, times.x))


@operator("Concat")
def _concat(node, *parts):
    axis = node.attributes["axis"]
    e = np.concatenate([bounds(p.e, p.x) for p in parts], axis)
    return Tensor(np.concatenate([p.x for p in parts], axis), parts[0].kind, e, node.constant)


@operator("Split")
def _split(node, a, sizes=None):
    axis = node.attributes.get("axis", 0) % a.x.ndim
    given = sizes.x.tolist() if sizes is not None else node.attributes.get("split")
    if given is None:
        each = -(-a.x.shape[axis] // node.outputs)
        given = [each] * (node.outputs - 1) + [a.x.shape[axis] - each * (node.outputs - 1)]
    ends = np.cumsum(given)
    return tuple(
        a.moved(lambda x, end=end, size=size: x.take(range(end - size, end), axis))
        for end, size in zip(ends, given, strict=True)
    )


@operator("Slice")
def _slice(node, a, starts, ends, axes=None, steps=None):
    where = range(len(starts.x)) if axes is None else axes.x.tolist()
    strides = [1] * len(starts.x) if steps is None else steps.x.tolist()
    index = [slice(None)] * a.x.ndim
    for axis, start, end, step in zip(where, starts.x.tolist(), ends.x.tolist(), strides, strict=True):
        index[axis] = slice(start, None if step < 0 and end < -(1 << 30) else end, step)
    return a.moved(lambda x: x[tuple(index)])


@operator("Gather")
def _gather(node, a, index):
    return a.moved(lambda x: x.take(index.x, node.attributes.get("axis", 0)))


@operator("Pad")
def _pad(node, a, pads, value=None, axes=None):
    where = list(range(a.x.ndim)) if axes is None else [int(x) % a.x.ndim for x in axes.x]
    widths = [(0, 0)] * a.x.ndim
    for at, axis in enumerate(where):
        widths[axis] = (int(pads.x[at]), int(pads.x[at + len(where)]))
    fill = 0 if value is None else value.x.reshape(-1)[0]
    e = np.pad(bounds(a.e, a.x), widths)
    return Tensor(np.pad(a.x, widths, constant_values=fill), a.kind, e, node.constant)


@operator("Trilu")
def _trilu(node, a, k=None):
    cut = np.triu if node.attributes.get("upper", 1) else np.tril
    return a.moved(lambda x: cut(x, 0 if k is None else int(k.x.reshape(-1)[0])))


@operator("Where")
def _where(node, c, a, b):
    e = np.where(c.x, a.e, b.e)
    return Tensor(np.where(c.x, a.x, b.x), a.kind, e, node.constant)


# Shapes, integers, conditions.


def integers(x, node, kind=ir.DataType.INT64):
    return Tensor(np.asarray(x), kind, constant=node.constant)


@operator("Shape")
def _shape(node, a):
    return integers(np.asarray(a.x.shape[node.attributes.get("start", 0) : node.attributes.get("end")], np.int64), node)


@operator("Size")
def _size(node, a):
    return integers(np.int64(a.x.size), node)


@operator("ConstantOfShape")
def _constant_of_shape(node, shape):
    value = node.attributes.get("value")
    data = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    kind = ir.DataType.FLOAT if value is None else ir.DataType(value.data_type)
    return Tensor(np.full(tuple(shape.x), data.astype(np.float64)[0] if kind in FLOATS else data[0]), kind)


@operator("Range")
def _range(node, start, limit, step):
    return Tensor(np.arange(start.x.item(), limit.x.item(), step.x.item()), start.kind, constant=node.constant)


@operator("CumSum")
def _cumsum(node, a, axis):
    assert a.kind not in FLOATS and not node.attributes
    return integers(a.x.cumsum(int(axis.x.reshape(-1)[0])), node, a.kind)


_CONDITIONS = {
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    "Not": np.logical_not, "IsNaN": np.isnan,
}  # fmt: skip


@operator(*_CONDITIONS)
def _condition(node, *inputs):
    return Tensor(_CONDITIONS[node.op](*(t.x for t in inputs)), ir.DataType.BOOL, constant=node.constant)


@operator("IsInf")
def _is_inf(node, a):
    return Tensor(np.isinf(a.x), ir.DataType.BOOL, constant=node.constant)


@operator("Cast", "CastLike")
def _cast(node, a, like=None):
    kind = ir.DataType(node.attributes["to"]) if like is None else like.kind
    if kind == ir.DataType.BOOL:
        return Tensor(a.x != 0, kind, constant=node.constant)
    if kind not in FLOATS:
        return Tensor(a.x.astype(np.int64), kind, constant=node.constant)
    x = a.x.astype(np.float64)
    if a.kind not in FLOATS:
        return Tensor(x, kind, constant=node.constant)
    narrower = FLOATS[kind][0] > FLOATS[a.kind][0]
    if not narrower:
        return Tensor(x, kind, a.e, node.constant)
    own = 0.0 if a.constant else FLOATS[kind][0] * np.minimum(np.abs(x), 1e5)
    if a.constant:  # folded in its own precision: the number is exactly the rounded one
        x = x.astype(kind.numpy()).astype(np.float64)
    return node.rounding.result(x, kind, a.e + own, node.constant)
