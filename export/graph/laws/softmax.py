"""Law: exponentials divided by their sum are a Softmax, however the quotient is written; nothing overflows then.

    e = exp(x):   e / sum(e)   e * (1 / sum(e))   (e @ v) / sum(e) = softmax(x) @ v
    exp(x - logsumexp(x))      exp(log_softmax(x))

A Softmax takes the row's maximum off itself, so where the spelling overflows or divides 0 by 0 it still has a number:
one that becomes no attention is spelled out again.
"""

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import attribute, dims, label, made_by, rank, reduced_axes, uniform

MAY_OVERFLOW = "attnproof.may_overflow"
"""Marks a Softmax written by hand whose rows could be NaN (inf / inf, 0 / 0) and are numbers now; says by which."""


def spell_softmax(graph: ir.Graph) -> int:
    """Rewrites every softmax written by hand as one op; returns how many."""
    return sum(_try(node) for node in list(graph) if node.domain in ("", "ai.onnx"))


def spell_out_softmax(softmax: ir.Node) -> bool:
    """Writes a Softmax that could overflow as exponentials over their sum again; returns whether it was one."""
    x, old = softmax.inputs[0], softmax.outputs[0]
    if MAY_OVERFLOW not in softmax.metadata_props or x is None or softmax.graph is None:
        return False
    build = Builder(softmax, str(old.name))
    exponentials = build("Exp", x, dtype=old.dtype, shape=old.shape)
    total = build("ReduceSum", exponentials, build.axes(attribute(softmax, "axis", -1)), dtype=old.dtype, keepdims=1)
    quotient = build("Div", exponentials, total, dtype=old.dtype, shape=old.shape)
    for node in (exponentials.producer(), total.producer(), quotient.producer()):
        if node is not None:
            node.metadata_props.pop(MAY_OVERFLOW, None)
            node.name = softmax.name if node.op_type == "Div" else node.name  # reports go by it
    take_place(old, quotient)
    softmax.graph.remove(softmax, safe=True)
    return True


def _try(node: ir.Node) -> bool:
    if node.op_type == "Exp":
        return _exponential_of_logarithm(node)
    for numerator, total in _quotients(node):
        found = _summed(total)
        if found is None:
            continue
        exponentials, axis = found
        x = _argument(exponentials)
        if x is None:
            continue
        if numerator is exponentials:
            return _write(node, x, axis, shifted=_shifted(x))
        product = made_by(numerator, "MatMul")
        if product is not None and product.inputs[0] is exponentials and axis == -1 and _rows(product, total):
            return _write(node, x, axis, product.inputs[1], shifted=_shifted(x))
    return False


def _quotients(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """Returns the ways a node divides one tensor by another: (numerator, denominator)."""
    if node.op_type not in ("Div", "Mul"):
        return []
    left, right = node.inputs
    if left is None or right is None:
        return []
    if node.op_type == "Div":
        return [(left, right)]
    sides = ((left, _inverse(right)), (right, _inverse(left)))
    return [(numerator, inner) for numerator, inner in sides if inner is not None]


def _inverse(value: ir.Value) -> ir.Value | None:
    """Returns y where `value` is 1/y."""
    reciprocal = made_by(value, "Reciprocal")
    if reciprocal is not None:
        return reciprocal.inputs[0]
    one_over = made_by(value, "Div")
    if one_over is not None and uniform(one_over.inputs[0]) == 1.0:
        return one_over.inputs[1]
    times_one = made_by(value, "Mul")  # as the TorchScript exporter writes 1.0 / y
    if times_one is not None and times_one.inputs[0] is not None and uniform(times_one.inputs[1]) == 1.0:
        return _inverse(times_one.inputs[0])
    power = made_by(value, "Pow")
    return power.inputs[0] if power is not None and uniform(power.inputs[1]) == -1.0 else None


def _summed(total: ir.Value) -> tuple[ir.Value, int] | None:
    """Returns what a tensor is the sum of, and over which axis, from the right; the axis is kept as one of 1."""
    node = made_by(total, "ReduceSum")
    back = made_by(total, "Unsqueeze", "Reshape", "Expand")
    if node is None and back is not None:
        node = made_by(back.inputs[0], "ReduceSum")
    source = node.inputs[0] if node is not None else None
    axes, shape = None if node is None else reduced_axes(node), dims(source)
    if source is None or axes is None or len(axes) != 1 or shape is None:
        return None
    at = axes[0]
    kept = (*shape[:at], 1, *shape[at + 1 :])
    expanded = back is not None and back.op_type == "Expand" and dims(back.inputs[0]) == kept
    return (source, at - len(shape)) if dims(total) == kept or (expanded and dims(total) == shape) else None


def _argument(exponentials: ir.Value) -> ir.Value | None:
    node = made_by(exponentials, "Exp")
    return node.inputs[0] if node is not None else None


def _rows(product: ir.Node, total: ir.Value) -> bool:
    """Says whether `total` has one number for each row of a product, so that it divides them."""
    return rank(product.outputs[0]) is not None and rank(product.outputs[0]) == rank(total) == rank(product.inputs[0])


def _exponential_of_logarithm(node: ir.Node) -> bool:
    source = node.inputs[0]
    logarithm = made_by(source, "LogSoftmax")
    if logarithm is not None and logarithm.inputs[0] is not None:
        return _write(node, logarithm.inputs[0], attribute(logarithm, "axis", -1))
    difference = made_by(source, "Sub")
    if difference is None:
        return False
    x, taken = difference.inputs
    total = made_by(taken, "ReduceLogSumExp")
    if x is None or total is None or total.inputs[0] is not x:
        return False
    axes, shape = reduced_axes(total), dims(x)
    if axes is None or len(axes) != 1 or shape is None:
        return False
    at = axes[0]
    return dims(taken) == (*shape[:at], 1, *shape[at + 1 :]) and _write(node, x, at - len(shape))


def _shifted(x: ir.Value) -> bool:
    """Says whether exponents are less their row's maximum, so that their sum is neither infinite nor 0."""
    difference = made_by(x, "Sub")
    value = difference.inputs[1] if difference is not None else None
    while (step := made_by(value, "Cast", "Identity", "Unsqueeze", "Reshape", "Expand")) is not None:
        value = step.inputs[0]
    return made_by(value, "ReduceMax") is not None


def _write(node: ir.Node, x: ir.Value, axis: int, value: ir.Value | None = None, *, shifted: bool = True) -> bool:
    """Puts Softmax(x), or Softmax(x) @ value, in the place of a node."""
    old = node.outputs[0]
    build = Builder(node, str(old.name))  # tensors have names of their own, nodes may not
    made = build("Softmax", x, dtype=x.dtype, shape=x.shape, axis=axis)
    softmax = made.producer()
    if softmax is not None and not shifted:
        softmax.metadata_props[MAY_OVERFLOW] = label(node)
    if value is not None:
        made = build("MatMul", made, value, dtype=old.dtype, shape=old.shape)
    take_place(old, made)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True
