"""Reads the scores under a Softmax backwards, from the graph into one `Scores` value.

Every operator that may stand between QK^T and Softmax has one case here. A case reads its score input first and then
says what it does to the value; it never looks at its neighbours, so any order and nesting of cases composes. A new
spelling is a new case (or a law that rewrites it into one of these), never a pattern of several nodes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

import onnx_ir as ir

from export.fuse.scores import Operand, Scores, Stage
from export.graph.values import (
    Refusal,
    attribute,
    dims,
    inputs_of,
    integers,
    label,
    made_by,
    permutation,
    rank,
    swaps_last_two,
    uniform,
)

_DEPTH = 64
"""Nodes between QK^T and Softmax beyond which the reader gives up; real spellings have fewer than 20."""


@dataclass(frozen=True)
class Walk:
    """How far the reader may still go, and what it already found to be no scores, for all branches of one walk."""

    left: int = _DEPTH
    refused: dict[ir.Value, Refusal] = field(default_factory=dict)


Case = Callable[[ir.Node, Walk], Scores]
_CASES: dict[str, Case] = {}


def _case(*ops: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        _CASES.update(dict.fromkeys(ops, function))
        return function

    return register


def read_scores(value: ir.Value, walk: Walk | None = None) -> Scores:
    """Returns the scores that `value` holds.

    Args:
        value: A tensor [..., S, T], normally the input of a Softmax over its last axis.
        walk: The state of the walk; leave it out at the start.

    Raises:
        Refusal: Something on the way is not a step from QK^T to scores; the sentence names the node.
    """
    walk = walk or Walk()
    if value in walk.refused:
        raise walk.refused[value]
    try:
        return _read(value, Walk(walk.left - 1, walk.refused))
    except Refusal as refusal:
        walk.refused[value] = refusal
        raise


def _read(value: ir.Value, walk: Walk) -> Scores:
    node = value.producer()
    if node is None:
        raise Refusal("K101", f"The scores are the tensor '{value.name}' itself, not a product of Q and K.")
    case = _CASES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if case is None:
        raise Refusal("K102", f"{label(node)} stands between QK^T and Softmax and is not a step of softmax attention.")
    if walk.left < 0:
        raise Refusal("K103", f"More than {_DEPTH} nodes stand between QK^T and Softmax (at {label(node)}).")
    return case(node, walk).through(node).marked(value)


def _either_side(node: ir.Node, walk: Walk) -> tuple[Scores, ir.Value, int]:
    """Reads whichever input holds scores; returns them, the other input and the position of the scores."""
    left, right = inputs_of(node, 2)
    refusals = []
    sides = ((left, right, 0), (right, left, 1))
    for side, other, at in sides if _deeper(left, right) else reversed(sides):
        if uniform(side) is None:
            try:
                return read_scores(side, walk), other, at
            except Refusal as refusal:
                refusals.append(refusal)
    raise next((r for r in refusals if r.code != "K101"), refusals[0] if refusals else _no_product(node))


def _deeper(left: ir.Value, right: ir.Value) -> bool:
    """Scores have the full rank; a mask often has less. Only an order of trial, never a decision."""
    return (rank(left) or 0) >= (rank(right) or 0)


def _no_product(node: ir.Node) -> Refusal:
    return Refusal("K101", f"Neither input of {label(node)} holds a product of Q and K.")


@_case("MatMul")
def _product(node: ir.Node, walk: Walk) -> Scores:
    query, key_t = inputs_of(node, 2)
    for side in (query, key_t):
        if side.const_value is not None and (rank(side) or 0) <= 2:
            raise Refusal("K104", f"{label(node)} multiplies by the weight '{side.name}': a linear layer, not QK^T.")
    frame = dims(node.outputs[0])
    if frame is None or len(frame) < 2:
        raise Refusal("K201", f"The shape of {label(node)} is not known, so its heads cannot be told.")
    return Scores(Operand(query), Operand(key_t), frame=frame)


@_case("Mul", "Div")
def _factor(node: ir.Node, walk: Walk) -> Scores:
    left, right = inputs_of(node, 2)
    divides = node.op_type == "Div"
    for side, other in ((right, left), (left, right)):
        number = uniform(side)
        if number is None or (divides and side is left):
            continue
        factor = 1.0 / number if divides and number else number
        if divides and not number:
            raise Refusal("K105", f"{label(node)} divides the scores by zero.")
        capped = made_by(other, "Tanh")
        if capped is not None:
            return _softcap(capped, factor, walk)
        return _times(node, read_scores(other, walk), factor)
    scores, factor_tensor, _ = _either_side(node, walk)
    if divides:
        raise Refusal(
            "K106", f"{label(node)} divides the scores by the tensor '{factor_tensor.name}', not by a constant."
        )
    return _scaled_by_tensor(node, scores, factor_tensor)


def _times(node: ir.Node, scores: Scores, factor: float) -> Scores:
    if scores.softcap is not None and factor != 1.0:
        raise Refusal("K109", f"{label(node)} scales the scores after their softcap.")
    if scores.stages and factor <= 0.0:
        raise Refusal("K118", f"{label(node)} turns masked scores around with the factor {factor:g}.")
    return scores.times(factor)


def _scaled_by_tensor(node: ir.Node, scores: Scores, factor: ir.Value) -> Scores:
    """A factor that is constant along keys multiplies the rows of Q instead: (f*q)k^T == f*(qk^T)."""
    shape = dims(factor)
    if shape is None or (shape and shape[-1] != 1):
        raise Refusal("K107", f"{label(node)} multiplies the scores by '{factor.name}', which varies over the keys.")
    room = scores.frame[len(scores.frame) - len(shape) :]
    if len(shape) > len(scores.frame) or any(d not in (1, r) for d, r in zip(shape, room, strict=True)):
        raise Refusal("K107", f"{label(node)} widens the scores {list(scores.frame)} by a factor {list(shape)}.")
    if scores.stages or scores.softcap is not None:
        raise Refusal("K108", f"{label(node)} multiplies scores that already hold a mask or softcap by a tensor.")
    if dims(scores.query.value) is None or scores.frame[:-2] != (dims(scores.query.value) or ())[:-2]:
        raise Refusal("K108", f"{label(node)} multiplies scores that were reshaped by a tensor.")
    if scores.query.factor is not None or scores.query.swapped:
        raise Refusal("K108", f"{label(node)} is a second tensor that multiplies the scores.")
    return replace(scores, query=replace(scores.query, factor=factor))


def _softcap(tanh: ir.Node, outer: float, walk: Walk) -> Scores:
    inner = read_scores(inputs_of(tanh, 1)[0], walk).through(tanh)
    if inner.stages or inner.softcap is not None or inner.query.factor is not None:
        raise Refusal("K109", f"{label(tanh)} caps scores that were masked before; softcap comes before the mask.")
    return replace(inner, softcap=outer, scale=inner.scale * outer)


@_case("Neg")
def _negated(node: ir.Node, walk: Walk) -> Scores:
    return _times(node, read_scores(inputs_of(node, 1)[0], walk), -1.0)


@_case("Add")
def _sum(node: ir.Node, walk: Walk) -> Scores:
    scores, term, _ = _either_side(node, walk)
    return scores.then(_hiding(term) or Stage("add", term))


def _hiding(term: ir.Value) -> Stage | None:
    """Adding where(c, 0, -inf) is filling with -inf where c does not hold."""
    node = made_by(term, "Where")
    if node is None:
        return None
    condition, chosen, otherwise = inputs_of(node, 3)
    fills = uniform(chosen), uniform(otherwise)
    if fills in ((0.0, -inf), (-inf, 0.0)):
        return Stage("fill", condition, keep_when=fills[0] == 0.0, fill=-inf)
    return None


@_case("Sub")
def _difference(node: ir.Node, walk: Walk) -> Scores:
    scores, term, at = _either_side(node, walk)
    if at == 0:
        return scores.then(Stage("subtract", term))
    return _times(node, scores, -1.0).then(Stage("add", term))


@_case("Where")
def _selected(node: ir.Node, walk: Walk) -> Scores:
    condition, chosen, otherwise = inputs_of(node, 3)
    for side, other, keep_when in ((chosen, otherwise, True), (otherwise, chosen, False)):
        fill = uniform(other)
        if fill is not None and uniform(side) is None:
            if not fill <= -1e3:  # NaN too
                raise Refusal("K110", f"{label(node)} writes {fill:g} into masked scores; that does not hide a key.")
            return read_scores(side, walk).then(Stage("fill", condition, keep_when, fill))
    raise Refusal("K111", f"{label(node)} selects between two tensors; a mask writes one constant.")


@_case("Cast")
def _cast(node: ir.Node, walk: Walk) -> Scores:
    scores = read_scores(inputs_of(node, 1)[0], walk)
    to = ir.DataType(attribute(node, "to", 0))
    if not to.is_floating_point():
        raise Refusal("K112", f"{label(node)} turns the scores into {to.name.lower()}.")
    return replace(scores, casts=(*scores.casts, to))


@_case("Identity")
def _identity(node: ir.Node, walk: Walk) -> Scores:
    return read_scores(inputs_of(node, 1)[0], walk)


@_case("Transpose")
def _transposed(node: ir.Node, walk: Walk) -> Scores:
    scores = read_scores(inputs_of(node, 1)[0], walk)
    if not swaps_last_two(node):
        raise Refusal(
            "K113", f"{label(node)} moves the scores' axes by {permutation(node)}, not just queries and keys."
        )
    if scores.stages or scores.query.factor is not None:
        raise Refusal("K113", f"{label(node)} exchanges queries and keys after a mask was applied.")
    frame = (*scores.frame[:-2], scores.frame[-1], scores.frame[-2])
    return replace(scores, query=scores.key_t.swap(), key_t=scores.query.swap(), frame=frame)


@_case("Reshape", "Unsqueeze", "Squeeze")
def _reshaped(node: ir.Node, walk: Walk) -> Scores:
    """Merging or splitting the axes before the keys leaves each row of scores as it is; a mask is reshaped along."""
    value = inputs_of(node, 1)[0]
    scores = read_scores(value, walk)
    before, after = scores.frame, dims(node.outputs[0])
    if after is None:
        raise Refusal("K114", f"{label(node)} reshapes the scores and its shape is not known.")
    if before[-1] != after[-1]:
        raise Refusal("K115", f"{label(node)} reshapes the scores across keys: {list(before)} to {list(after)}.")
    if before == after:
        return scores
    if scores.query.factor is not None or node.op_type != "Reshape" or 0 in (integers(node.inputs[1]) or ()):
        if scores.stages or scores.query.factor is not None:
            raise Refusal("K116", f"{label(node)} reshapes scores that already hold a mask or a factor.")
        return replace(scores, frame=after)
    steady = scores.steady and before[-2:] == after[-2:]
    reshapes = (*scores.reshapes, inputs_of(node, 2)[1])
    return replace(scores, frame=after, reshapes=reshapes, steady=steady)


@_case("Max", "Min", "Clip", "Relu")
def _clamped(node: ir.Node, walk: Walk) -> Scores:
    raise Refusal("K117", f"{label(node)} clamps the scores; an Attention op has no such step.")
