"""What arithmetic operators compute, in numpy from their specification, and how far off rounding may take it."""

from collections.abc import Callable

import numpy as np
from fuzz_attention import attention, rotary_embedding
from fuzz_operators import OPERATORS, axes_of, integers, operator
from fuzz_tensor import FLOATS, Tensor, bounds, product, softmax

OPERATORS.update(Attention=attention, RotaryEmbedding=rotary_embedding)


def _is_whole(*tensors):
    return all(t.kind not in FLOATS for t in tensors)


@operator("Add", "Sub")
def _sum(node, a, b):
    x = a.x + b.x if node.op == "Add" else a.x - b.x
    if node.rounding.empty is not None and node.op == "Sub":  # a row of -inf less its maximum
        x = np.where(np.isneginf(a.x) & np.isneginf(b.x), -np.inf, x)
    if _is_whole(a, b):
        return integers(x, node, a.kind)
    return node.rounding.result(x, a.kind, np.add(a.e, b.e), node.constant)


@operator("Mul", "Div")
def _times(node, a, b):
    if _is_whole(a, b):
        return integers(a.x * b.x if node.op == "Mul" else np.floor_divide(a.x, b.x), node, a.kind)
    if node.op == "Mul":
        x = a.x * b.x
        if node.rounding.empty is not None:  # no exponentials, times the reciprocal of their sum
            x = np.where(((a.x == 0) & np.isinf(b.x)) | ((b.x == 0) & np.isinf(a.x)), 0.0, x)
        e = np.abs(a.x) * b.e + np.abs(b.x) * a.e + np.multiply(a.e, b.e)
    else:
        x = a.x / b.x
        if node.rounding.empty is not None:  # no exponentials, over their sum
            x = np.where((a.x == 0) & (b.x == 0), 0.0, x)
        e = (a.e + np.abs(x) * b.e) / np.maximum(np.abs(b.x) - b.e, 0.0)
    if not node.constant and (a.constant or b.constant):
        e = np.nan_to_num(e, nan=0.0) + node.rounding.scaled(np.abs(x), a.kind)
    return node.rounding.result(x, a.kind, np.nan_to_num(e, nan=0.0, posinf=np.inf), node.constant)


@operator("Mod")
def _mod(node, a, b):
    return integers(np.mod(a.x, b.x), node, a.kind)


@operator("Pow")
def _pow(node, a, b):
    x = a.x**b.x
    return node.rounding.result(x, a.kind, np.abs(b.x * a.x ** (b.x - 1.0)) * a.e, node.constant)


@operator("Neg", "Abs")
def _sign(node, a):
    return Tensor(-a.x if node.op == "Neg" else np.abs(a.x), a.kind, a.e, node.constant)


_SLOPES: dict[str, tuple[Callable, Callable]] = {
    "Tanh": (np.tanh, lambda x, y: np.ones_like(x)),
    "Sin": (np.sin, lambda x, y: np.ones_like(x)),
    "Cos": (np.cos, lambda x, y: np.ones_like(x)),
    "Sigmoid": (lambda x: 1.0 / (1.0 + np.exp(-x)), lambda x, y: np.full_like(x, 0.25)),
    "Relu": (lambda x: np.maximum(x, 0.0), lambda x, y: np.ones_like(x)),
    "Sqrt": (np.sqrt, lambda x, y: 1.0 / y),
    "Reciprocal": (lambda x: 1.0 / x, lambda x, y: 2.0 * y * y),
    "Log": (np.log, lambda x, y: 2.0 / np.abs(x)),
}
"""Each function and a bound on its slope near x."""


@operator(*_SLOPES)
def _function(node, a):
    function, slope = _SLOPES[node.op]
    y = function(a.x)
    return node.rounding.result(y, a.kind, np.nan_to_num(slope(a.x, y) * a.e, nan=0.0), node.constant)


@operator("Exp")
def _exp(node, a):
    y = np.exp(a.x)
    e = np.where(y > 0, y * np.expm1(np.minimum(a.e, 60.0)), 0.0)
    return node.rounding.result(y, a.kind, np.nan_to_num(e, nan=0.0, posinf=np.inf), node.constant)


@operator("Max", "Min")
def _extreme(node, *inputs):
    pick = np.maximum if node.op == "Max" else np.minimum
    x, e = inputs[0].x, inputs[0].e
    for other in inputs[1:]:
        x, e = pick(x, other.x), np.maximum(e, other.e)
    return Tensor(x, inputs[0].kind, e, node.constant)


@operator("Clip")
def _clip(node, a, low=None, high=None):
    return Tensor(np.clip(a.x, None if low is None else low.x, None if high is None else high.x), a.kind, a.e)


@operator("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean")
def _reduce(node, a, axes=None):
    axis, keep = axes_of(node, axes, a.x.ndim), bool(node.attributes.get("keepdims", 1))
    if axes is not None and axis == () and node.attributes.get("noop_with_empty_axes", 0):
        return a
    axis = axis or None
    if node.op in ("ReduceMax", "ReduceMin"):
        pick = np.max if node.op == "ReduceMax" else np.min
        return Tensor(pick(a.x, axis=axis, keepdims=keep), a.kind, np.max(bounds(a.e, a.x), axis=axis, keepdims=keep))
    total = a.x.sum(axis=axis, keepdims=keep)
    if _is_whole(a):
        return integers(total, node, a.kind)
    count = a.x.size / max(total.size, 1)
    finite = np.nan_to_num(np.abs(a.x), nan=0.0, posinf=0.0).sum(axis=axis, keepdims=keep)
    e = bounds(a.e, a.x).sum(axis=axis, keepdims=keep) + count * node.rounding.unit(a.kind) * finite
    over = count if node.op == "ReduceMean" else 1.0
    return node.rounding.result(total / over, a.kind, e / over, node.constant)


@operator("MatMul")
def _matmul(node, a, b):
    x, e = product(a, b, np.matmul, node.rounding.unit(a.kind))
    return node.rounding.result(x, a.kind, e, node.constant)


@operator("Gemm")
def _gemm(node, a, b, c=None):
    left = a.moved(np.transpose) if node.attributes.get("transA", 0) else a
    right = b.moved(np.transpose) if node.attributes.get("transB", 0) else b
    x, e = product(left, right, np.matmul, node.rounding.unit(a.kind))
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    x, e = alpha * x, abs(alpha) * e + node.rounding.scaled(np.abs(alpha * x), a.kind)
    if c is not None:
        x, e = x + beta * c.x, e + abs(beta) * c.e
    return node.rounding.result(x, a.kind, e, node.constant)


@operator("Einsum")
def _einsum(node, *inputs):
    equation = node.attributes["equation"].decode()
    if len(inputs) == 1:
        return inputs[0].moved(lambda x: np.einsum(equation, x))
    x, e = product(*inputs, lambda a, b: np.einsum(equation, a, b), node.rounding.unit(inputs[0].kind))
    return node.rounding.result(x, inputs[0].kind, e, node.constant)


@operator("Softmax", "LogSoftmax")
def _softmax(node, a):
    axis = node.attributes.get("axis", -1)
    x, e = np.moveaxis(a.x, axis, -1), np.moveaxis(bounds(a.e, a.x), axis, -1)
    p, off = softmax(x, e, node.rounding.unit(a.kind), node.rounding.empty)
    if node.op == "LogSoftmax":
        most = x.max(axis=-1, keepdims=True)
        p = x - most - np.log(np.exp(x - most).sum(axis=-1, keepdims=True))
        p = p if node.rounding.empty is None else np.where(np.isneginf(most), -np.inf, p)
        off = e + e.max(axis=-1, keepdims=True)
    return node.rounding.result(np.moveaxis(p, -1, axis), a.kind, np.moveaxis(off, -1, axis), node.constant)
