"""Law: what is computed element by element from one truth value has two levels, and selecting them says so.

x * b + f * (1 - b)              = where(b, x, f)            a mask that multiplies
x + (1 - b) * f                  = x + where(b, 0, f)        a deep f alone, where it may be a fill
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import array, dim, dims, made_by, rank, uniform

_DEPTH = 8
_DEEP = -1e30
_LAYOUT = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice", "Gather", "Identity", "Trilu", "Tile")
_BOTH = ("Add", "Sub", "Mul", "Div", "Min", "Max")


@dataclass(frozen=True)
class Levels:
    """A tensor that is `high` where `truth` is true (or 1) and `low` where it is false (or 0)."""

    truth: ir.Value
    high: float
    low: float


def select_levels(graph: ir.Graph) -> int:
    """Rewrites products and sums with two-level tensors as selections; returns how many."""
    return sum(_try(node) for node in list(graph) if node.domain in ("", "ai.onnx") and node.op_type in ("Add", "Sub"))


def _try(node: ir.Node) -> bool:
    left, right = node.inputs
    if left is None or right is None:
        return False
    sign = -1.0 if node.op_type == "Sub" else 1.0
    for side, term, factor in ((left, right, sign), (right, left, 1.0)):
        if side is right and node.op_type == "Sub":
            continue
        found = levels(term)
        if found is None or _selects_constants(term):
            continue
        fill = factor * found.low, factor * found.high
        product = made_by(side, "Mul")
        if product is not None:
            for x, mask in (product.inputs, product.inputs[::-1]):
                switch = levels(mask)
                if (
                    x is None
                    or mask is None
                    or switch is None
                    or switch.truth is not found.truth
                    or levels(x) is not None
                ):
                    continue
                if _widens(x, found.truth) or _widens(x, term) or _widens(x, mask):
                    continue
                if (switch.high, switch.low) == (1.0, 0.0) and fill[1] == 0.0:
                    return _select(node, node.outputs[0], found.truth, x, fill[0])
                if (switch.high, switch.low) == (0.0, 1.0) and fill[0] == 0.0:
                    return _select(node, node.outputs[0], found.truth, fill[1], x)
        if factor > 0.0 and 0.0 in fill and min(fill) <= _DEEP and dims(term) == dims(found.truth) is not None:
            source = term.producer()
            return source is not None and _select(source, term, found.truth, found.high, found.low)
    return False


def _selects_constants(value: ir.Value) -> bool:
    node = made_by(value, "Where")
    return node is not None and all(uniform(side) is not None for side in node.inputs[1:])


def _widens(x: ir.Value, other: ir.Value) -> bool:
    """Says whether broadcasting with `other` may give x more elements than it has."""
    shape, wide = dims(x), rank(other)
    if shape is None or wide is None or wide > len(shape):
        return True
    return any(shape[-at] == 1 and dim(other, -at) != 1 for at in range(1, wide + 1))


def _select(
    node: ir.Node, old: ir.Value, truth: ir.Value, chosen: ir.Value | float, otherwise: ir.Value | float
) -> bool:
    """Puts where(truth, chosen, otherwise) in the place of a node's output."""
    if old.dtype is None:
        return False
    build = Builder(node, node.name or str(old.name))
    if truth.dtype != ir.DataType.BOOL:
        truth = build("Cast", truth, dtype=ir.DataType.BOOL, shape=truth.shape, to=int(ir.DataType.BOOL))
    sides = (build.number(s + 0.0, old.dtype) if isinstance(s, float) else s for s in (chosen, otherwise))
    take_place(old, build("Where", truth, *sides, dtype=old.dtype, shape=old.shape))
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True


def levels(value: ir.Value | None) -> Levels | None:
    """Returns the two levels of a floating-point tensor, or None where it is not provably made of one truth value."""
    if value is None or value.dtype is None or not value.dtype.is_floating_point():
        return None
    found = _base(value, _DEPTH)
    if found is None or found is value:
        return Levels(value, 1.0, 0.0) if found is value else None
    high, low = (_at(value, found, truth) for truth in (True, False))
    return None if high is None or low is None else Levels(found, float(high), float(low))


def _base(value: ir.Value, depth: int) -> ir.Value | None:
    """Returns the one tensor of truth values that `value` is computed from element by element, or None."""
    node = value.producer()
    if value.dtype == ir.DataType.BOOL and (
        node is None or node.op_type not in ("Not", "Cast", "Equal", "Greater", "Less")
    ):
        return value
    sources = [] if node is None or not depth else _elementwise(node)
    if sources:
        bases = {_base(source, depth - 1) for source in sources}
        if len(bases) == 1 and None not in bases:
            return bases.pop()
    return value if zero_or_one(value) else None


def _elementwise(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs of an elementwise node that are not one constant."""
    if node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type not in (*_BOTH, "Neg", "Not", "Cast", "Where", "Equal", "Greater", "Less"):
        return []
    return [v for v in node.inputs if v is not None and uniform(v) is None]


def _at(value: ir.Value, base: ir.Value, truth: bool) -> np.ndarray | None:
    """Computes `value` where `base` is true, or false, in the precision of each step."""
    if value is base:
        return np.asarray(truth, _numpy(value))
    number = uniform(value)
    if number is not None:
        return np.asarray(number, _numpy(value))
    node = value.producer()
    if node is None:
        return None
    found = [_at(v, base, truth) for v in node.inputs if v is not None]
    if any(x is None for x in found):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(_STEPS[node.op_type](*found), _numpy(value))


_STEPS: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Min": np.minimum, "Max": np.maximum,
    "Neg": np.negative, "Not": np.logical_not, "Cast": np.asarray, "Where": np.where, "Equal": np.equal,
    "Greater": np.greater, "Less": np.less,
}  # fmt: skip


def _numpy(value: ir.Value) -> np.dtype:
    return np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()


def zero_or_one(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Says whether every element is provably 0 or 1."""
    if value is None or not depth:
        return False
    if value.dtype == ir.DataType.BOOL:
        return True
    data = array(value)
    if data is not None:
        return data.size <= 1 << 22 and data.dtype.kind in "fiub" and bool(((data == 0) | (data == 1)).all())
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in (*_LAYOUT, "Cast"):
        return zero_or_one(node.inputs[0], depth - 1)
    if node.op_type == "ConstantOfShape":
        return uniform(value) in (0.0, 1.0)
    if node.op_type == "Sub":
        return uniform(node.inputs[0]) == 1.0 and zero_or_one(node.inputs[1], depth - 1)
    if node.op_type == "Mul":
        return all(zero_or_one(side, depth - 1) for side in node.inputs)
    return False
