"""What tells two nodes of one tensor apart: another operator, attribute, weight or input; a factor; an overflow."""

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from export.bisect.result import Cause
from export.graph.values import array, label
from export.parity.budgets import graph_budget
from export.parity.compare import Expected
from export.parity.precision import Precision

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray


def explain(a: ir.Node | None, b: ir.Node, actual: "Array", expected: Expected, dtype: Precision) -> tuple[Cause, ...]:
    """Returns why one tensor differs: what its values say first, then what the two nodes say.

    Args:
        a: The node of A that makes it, or None.
        b: The node of B that does.
        actual: B's tensor.
        expected: A's, with its reach.
        dtype: The precision compared at.
    """
    found = [_overflow(actual, expected, dtype), *(() if a is None else _nodes(a, b))]
    found += [_turned(actual, expected, dtype), _factor(actual, expected, dtype)]
    return tuple(cause for cause in found if cause is not None)


def _overflow(actual: "Array", expected: Expected, dtype: Precision) -> Cause | None:
    import numpy as np

    if actual.shape != expected.value.shape:
        return None
    right = expected.value.astype(np.float64)
    lost = ~np.isfinite(actual.astype(np.float64)) & np.isfinite(right)
    if not lost.any():
        return None
    size = np.where(lost, np.abs(right), 0.0)
    at = tuple(int(i) for i in np.unravel_index(int(size.argmax()), size.shape))
    if size[at] > dtype.largest:
        text = f"The value at {list(at)} is {right[at]:.6g}; {dtype.storage} ends at {dtype.largest:.6g}."
        return Cause("overflow", text, "overflow")
    at = tuple(int(i) for i in np.argwhere(lost)[0])
    text = f"It is {float(actual[at])} at {list(at)}, where {right[at]:.6g} is right: a step before it overflowed."
    return Cause("not-finite", text, "overflow")


def _nodes(a: ir.Node, b: ir.Node) -> "list[Cause]":
    if a.op_identifier() != b.op_identifier():
        return [Cause("operator", f"{label(b)} computes it; in A it is {label(a)}.", "operator")]
    found = []
    for name in dict.fromkeys((*a.attributes, *b.attributes)):
        ours, theirs = (_value(node.attributes.get(name)) for node in (a, b))
        if ours != theirs:
            text = f"{label(b)} has {name} = {theirs}; in A it is {ours}."
            found.append(Cause("attribute", text, "attribute"))
    for at, (one, two) in enumerate(zip(a.inputs, b.inputs, strict=False)):
        difference = _weights(one, two)
        if difference:
            found.append(Cause("weight", f"Input {at} of {label(b)}, {difference}", "weight"))
        elif one is not None and two is not None and one.name != two.name and array(one) is None:
            found.append(Cause("input", f"Input {at} of {label(b)} is {two.name!r}; in A it is {one.name!r}.", "input"))
    if len(a.inputs) != len(b.inputs):
        text = f"{label(b)} has {len(b.inputs)} inputs; in A it has {len(a.inputs)}."
        found.append(Cause("input", text, "input"))
    return found


def _value(given: ir.Attr | None) -> Any:
    if given is None:
        return None
    if given.type == ir.AttributeType.TENSOR:
        return given.as_tensor().numpy().tolist()
    return "a graph" if given.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) else given.value


def _weights(one: ir.Value | None, two: ir.Value | None) -> str:
    """Returns how two constants differ, or nothing."""
    import numpy as np

    ours, theirs = array(one), array(two)
    if ours is None or theirs is None or two is None:
        return ""
    if ours.shape != theirs.shape:
        return f"the weight {two.name!r}, has shape {list(theirs.shape)}; in A {list(ours.shape)}."
    if ours.dtype == theirs.dtype and np.array_equal(ours, theirs):
        return ""
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    at = np.unravel_index(int(error.argmax()), error.shape)
    place = [int(i) for i in at]
    return f"the weight {two.name!r}, is {theirs[at]:.6g} at {place}; in A it is {ours[at]:.6g}."


def _turned(actual: "Array", expected: Expected, dtype: Precision) -> Cause | None:
    """Says whether B's tensor is A's with two neighbouring axes exchanged."""
    import numpy as np

    right = expected.value.astype(np.float64)
    if expected.value.dtype.kind != "f" or actual.size != right.size:
        return None
    seen = actual.astype(np.float64)
    limit = graph_budget(right, np.broadcast_to(np.asarray(expected.reach), right.shape), dtype)
    for axis in range(right.ndim - 1):
        turned, room = (x.swapaxes(axis, axis + 1).reshape(actual.shape) for x in (right, limit))
        if (np.abs(seen - turned) <= room).all():
            return Cause("transposed", f"It is A's tensor with axes {axis} and {axis + 1} exchanged.", "layout")
    return None


def _factor(actual: "Array", expected: Expected, dtype: Precision) -> Cause | None:
    """Says whether B's tensor is A's times one number, taken from the largest element."""
    import numpy as np

    right = expected.value.astype(np.float64)
    if expected.value.dtype.kind != "f" or actual.shape != right.shape or not right.size:
        return None
    at = np.unravel_index(int(np.abs(right).argmax()), right.shape)
    factor = float(actual[at]) / float(right[at]) if right[at] else 0.0
    if not np.isfinite(factor) or not factor:
        return None
    reach = np.broadcast_to(np.asarray(expected.reach), right.shape)
    limit = graph_budget(right, reach, dtype) * (1.0 + abs(factor))  # the factor carries its element's own error
    if (np.abs(actual.astype(np.float64) - factor * right) > limit).any():
        return None
    return Cause("factor", f"It is A's tensor times {factor:.6g}.", "factor")
