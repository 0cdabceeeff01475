"""Rules of operators that work element by element: comparisons, logic, arithmetic, selection, casts."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.fuse.masks.formula import FALSE, Formula, all_of, any_of, at_least, equal_zero, truth
from export.fuse.masks.meaning import (
    INTEGERS,
    Case,
    Cases,
    Indices,
    Leaf,
    Meaning,
    Stuck,
    Sum,
    Term,
    combine,
    number,
    rule,
    where,
    whole,
)
from export.fuse.masks.polynomial import Poly, absolute, quotient
from export.graph.laws.noops import inactive_dropout

_EXACT = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
"""Types in which positions are whole numbers as far as any mask is long (float32: 2^24)."""


def exact(dtype: ir.DataType | None) -> bool:
    """Says whether positions counted in an element type are exact."""
    return dtype in (*INTEGERS, *_EXACT)


def _numbers(m: Meaning, node: ir.Node, at: int, indices: Indices) -> Cases:
    found = m.operand(node, at, indices)
    if not isinstance(found, Cases):
        raise Stuck
    return found


def _formula(m: Meaning, node: ir.Node, at: int, indices: Indices) -> Formula:
    found = m.operand(node, at, indices)
    if not isinstance(found, Formula):
        raise Stuck
    return found


@rule("And", "Or", "Xor")
def _logic(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    left, right = (_formula(m, node, at, indices) for at in (0, 1))
    if node.op_type == "Xor":
        return any_of((all_of((left, ~right)), all_of((~left, right))))
    return all_of((left, right)) if node.op_type == "And" else any_of((left, right))


@rule("Not")
def _not(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    return ~_formula(m, node, 0, indices)


_ORDER: dict[str, Callable[[Poly, Poly], Formula]] = {
    "Less": lambda a, b: at_least(b - a - 1),
    "LessOrEqual": lambda a, b: at_least(b - a),
    "Greater": lambda a, b: at_least(a - b - 1),
    "GreaterOrEqual": lambda a, b: at_least(a - b),
    "Equal": lambda a, b: equal_zero(a - b),
}
_ORDER_OF_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Equal": lambda a, b: a == b,
}


@rule("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
def _compared(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    left, right = (m.operand(node, at, indices) for at in (0, 1))
    if isinstance(left, Formula) and isinstance(right, Formula):
        return any_of((all_of((left, right)), all_of((~left, ~right))))
    if not isinstance(left, Cases) or not isinstance(right, Cases):
        raise Stuck
    return any_of(
        all_of((c, d, _ordered(node.op_type, a, b))) for c, a in left.found for d, b in right.found
    )  # fmt: skip


def _ordered(op: str, a: Leaf, b: Leaf) -> Formula:
    a, b = whole(a), whole(b)
    if isinstance(a, Poly) and isinstance(b, Poly):
        return _ORDER[op](a, b)
    if isinstance(a, Sum) and isinstance(b, Sum) and not a.reads and not b.reads:
        return truth(_ORDER_OF_NUMBERS[op](a.constant, b.constant))
    if isinstance(b, Sum) and not b.reads and isinstance(a, Poly) and not np.isfinite(b.constant):
        return truth(_ORDER_OF_NUMBERS[op](0.0, b.constant))
    raise Stuck


@rule("Where")
def _selected(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    condition = _formula(m, node, 0, indices)
    if condition == FALSE:
        return m.operand(node, 2, indices)
    if condition == truth(True):
        return m.operand(node, 1, indices)
    return where(condition, m.operand(node, 1, indices), m.operand(node, 2, indices))


@rule("Cast", "CastLike")
def _cast(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    source, to = node.inputs[0], node.outputs[0].dtype
    if source is None or to is None:
        raise Stuck
    found = m.at(source, indices)
    if isinstance(found, Formula):
        if to == ir.DataType.BOOL:
            return found
        return combine([(found, number(1, to)), (~found, number(0, to))])
    if to == ir.DataType.BOOL:
        return any_of(all_of((c, _truth(leaf))) for c, leaf in found.found)
    return Cases(tuple((c, _converted(leaf, source.dtype, to)) for c, leaf in found.found))


def _truth(leaf: Leaf) -> Formula:
    if isinstance(leaf, Poly):
        return ~equal_zero(leaf)
    if leaf.reads:
        raise Stuck
    return truth(leaf.constant != 0.0)


def _converted(leaf: Leaf, source: ir.DataType | None, to: ir.DataType) -> Leaf:
    if isinstance(leaf, Poly):
        if leaf.number is not None:
            return number(leaf.number, to) if to in INTEGERS else Sum(_rounded(leaf.number, to))
        unbounded = any(a.kind == "read" for a in leaf.atoms)
        wide = source is not None and to.itemsize >= source.itemsize
        if (to in INTEGERS and (wide or not unbounded)) or (to in _EXACT and not unbounded):
            return leaf
        raise Stuck
    if leaf.reads:
        if source is None or to.itemsize < source.itemsize or not to.is_floating_point():
            raise Stuck  # what a narrower type makes of an unknown number is not known
        return leaf
    if to.is_floating_point():
        return Sum(_rounded(leaf.constant, to))
    if to in INTEGERS and np.isfinite(leaf.constant):
        return number(int(leaf.constant), to)
    raise Stuck


def _rounded(value: float, dtype: ir.DataType) -> float:
    with np.errstate(over="ignore"):
        return float(np.asarray(value, np.float64).astype(dtype.numpy()))


@rule("Add", "Sub", "Mul", "Div", "Mod")
def _arithmetic(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    left, right = (_numbers(m, node, at, indices) for at in (0, 1))
    dtype = node.outputs[0].dtype
    if dtype is None:
        raise Stuck
    found: list[Case] = []
    for c, a in left.found:
        for d, b in right.found:
            condition = all_of((c, d))
            if condition != FALSE:
                found.append((condition, _calculated(node, a, b, dtype)))
    return combine(found)


def _calculated(node: ir.Node, a: Leaf, b: Leaf, dtype: ir.DataType) -> Leaf:
    op = node.op_type
    if dtype in INTEGERS and isinstance(a, Poly) and isinstance(b, Poly):
        return _integers(op, a, b)
    if not dtype.is_floating_point():
        raise Stuck
    x, y = _constant(a), _constant(b)
    if isinstance(x, Poly) or isinstance(y, Poly):
        if dtype in _EXACT and op in ("Add", "Sub"):
            i, j = whole(a), whole(b)
            if isinstance(i, Poly) and isinstance(j, Poly):
                return _integers(op, i, j)
        raise Stuck
    if not x.reads and not y.reads:
        return Sum(_of_numbers(op, x.constant, y.constant, dtype))
    if op == "Add":
        return Sum(_of_numbers("Add", x.constant, y.constant, dtype), (*x.reads, *y.reads))
    if op == "Sub" and not y.reads:
        return Sum(_of_numbers("Sub", x.constant, y.constant, dtype), x.reads)
    neutral = (op == "Mul" and 1.0 in (x.constant if not x.reads else 0.0, y.constant if not y.reads else 0.0)) or (
        op == "Div" and not y.reads and y.constant == 1.0
    )
    if neutral:
        return x if x.reads else y
    raise Stuck


def _constant(leaf: Leaf) -> Leaf:
    return Sum(float(leaf.number)) if isinstance(leaf, Poly) and leaf.number is not None else leaf


def _integers(op: str, a: Poly, b: Poly) -> Poly:
    if op == "Add":
        return a + b
    if op == "Sub":
        return a - b
    if op == "Mul":
        return a * b
    divisor = b.number
    whole = None if divisor is None else quotient(a, divisor)
    if whole is None or divisor is None:
        raise Stuck
    return whole if op == "Div" else a - whole * divisor


def _of_numbers(op: str, a: float, b: float, dtype: ir.DataType) -> float:
    """Returns what the operator makes of two constants, rounded as its element type is."""
    kind = dtype.numpy()
    x, y = np.asarray(a, np.float64).astype(kind), np.asarray(b, np.float64).astype(kind)
    with np.errstate(all="ignore"):
        if op == "Mod":
            raise Stuck
        result = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op](x, y)
    if np.isnan(result):
        raise Stuck
    return float(result) + 0.0


@rule("Neg", "Abs")
def _unary(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    found = m.at(node.inputs[0], indices)
    if not isinstance(found, Cases):
        raise Stuck
    cases: list[Case] = []
    for condition, leaf in found.found:
        if isinstance(leaf, Poly):
            cases.append((condition, -leaf if node.op_type == "Neg" else absolute(leaf)))
        elif leaf.reads:
            raise Stuck
        else:
            cases.append((condition, Sum((-leaf.constant if node.op_type == "Neg" else abs(leaf.constant)) + 0.0)))
    return combine(cases)


@rule("Identity")
def _identity(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    return m.at(node.inputs[0], indices)


@rule("Dropout")
def _dropout(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    if not inactive_dropout(node):
        raise Stuck
    return m.at(node.inputs[0], indices)
