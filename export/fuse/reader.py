"""Reads the scores under a Softmax backwards, from the graph into one `Scores` value.

Every operator that may stand between QK^T and Softmax has one case here. A case reads its score input first and then
says what it does to the value; it never looks at its neighbours, so any order and nesting of cases composes. A new
spelling is a new case (or a law that rewrites it into one of these), never a pattern of several nodes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from export.fuse.layout import of_product
from export.fuse.scores import Factor, Operand, Scores, Stage
from export.fuse.terms import axis_from_right, fill_of, floor_of, maximum_of, padding_of
from export.graph.values import Refusal, attribute, dim, dims, inputs_of, label, permutation, rank, uniform
from export.lower.bounds import bound

_DEPTH = 64
"""Nodes between QK^T and Softmax beyond which the reader gives up; real spellings have fewer than 20."""


@dataclass(frozen=True)
class Walk:
    """Which axis the keys are on here, from the right; how far the reader may go; what it found to be no scores."""

    axis: int = -1
    left: int = _DEPTH
    refused: dict[tuple[ir.Value, int], Refusal] = field(default_factory=dict)


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
        value: A tensor of scores, normally the input of a Softmax.
        walk: The state of the walk; at the start, the axis that the Softmax normalises over.

    Raises:
        Refusal: Something on the way is not a step from QK^T to scores; the sentence names the node.
    """
    walk = walk or Walk()
    if (value, walk.axis) in walk.refused:
        raise walk.refused[value, walk.axis]
    try:
        return _read(value, replace(walk, left=walk.left - 1))
    except Refusal as refusal:
        walk.refused[value, walk.axis] = refusal
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


def _first(node: ir.Node, walk: Walk) -> Scores:
    return read_scores(inputs_of(node, 1)[0], walk)


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
            raise Refusal(
                "K104",
                f"{label(node)} multiplies by the weight '{side.name}': a linear layer or heads that talk, not QK^T.",
            )
    frame = dims(node.outputs[0])
    if frame is None or len(frame) < 2:
        raise Refusal("K201", f"The shape of {label(node)} is not known, so its heads cannot be told.")
    if walk.axis == -1:
        return Scores(Operand(query), Operand(key_t), of_product(frame))
    if walk.axis == -2:  # what is normalised over are the rows: those are the keys
        return Scores(Operand(key_t).swap(), Operand(query).swap(), of_product(frame, swapped=True))
    raise Refusal(
        "K203", f"A Softmax over axis {walk.axis} of {label(node)} normalises neither its rows nor its columns."
    )


@_case("Mul", "Div")
def _factor(node: ir.Node, walk: Walk) -> Scores:
    left, right = inputs_of(node, 2)
    divides = node.op_type == "Div"
    for side, other in ((right, left), (left, right)):
        number = uniform(side)
        if number is None or (divides and side is left):
            continue
        if divides and not number:
            raise Refusal("K105", f"{label(node)} divides the scores by zero.")
        return _times(node, read_scores(other, walk), 1.0 / number if divides else number)
    scores, factor, at = _either_side(node, walk)
    if divides and at == 1:
        raise Refusal("K106", f"{label(node)} divides '{factor.name}' by the scores.")
    return _times_tensor(node, scores, Factor(factor, divides, _of_keys(node, scores, factor), scores.layout))


def _may_hide(stage: Stage) -> bool:
    """Says whether a stage may write -inf or something as deep, which a sign would turn into a key that takes all."""
    deep = stage.kind in ("add", "subtract") and bound(stage.value).finite > 1e4
    return deep or stage.kind in ("fill", "floor", "sink")


def _times(node: ir.Node, scores: Scores, factor: float) -> Scores:
    if factor <= 0.0 and any(_may_hide(stage) for stage in scores.stages):
        raise Refusal("K118", f"{label(node)} turns masked scores around with the factor {factor:g}.")
    if scores.softcap is not None and not factor:
        raise Refusal("K109", f"{label(node)} multiplies capped scores by zero.")
    return scores.times(factor)


def _times_tensor(node: ir.Node, scores: Scores, factor: Factor) -> Scores:
    """(f*q)k^T == f*(qk^T): a factor that is constant along keys belongs to Q, along queries to K."""
    if scores.stages or scores.softcap is not None:
        raise Refusal("K108", f"{label(node)} multiplies scores that already hold a mask or softcap by a tensor.")
    return replace(scores, factors=(*scores.factors, factor))


def _of_keys(node: ir.Node, scores: Scores, factor: ir.Value) -> bool:
    """Says whether a factor varies over the keys only (True) or not over them (False)."""
    shape, frame, layout = dims(factor), scores.layout.here, scores.layout
    if shape is None or len(shape) > len(frame) or not layout.straight:
        raise Refusal("K107", f"{label(node)} multiplies the scores by '{factor.name}', whose axes cannot be told.")
    shape = (1,) * (len(frame) - len(shape)) + shape
    if any(d not in (1, room) for d, room in zip(shape, frame, strict=True)):
        raise Refusal("K107", f"{label(node)} widens the scores {list(frame)} by a factor {list(shape)}.")
    if shape[-1] == 1:
        return False
    if shape[-2] == 1:
        return True
    raise Refusal(
        "K107",
        f"{label(node)} multiplies each score by its own number of '{factor.name}', which no scale of Attention does; "
        "to hide keys, fill their scores with -inf: a score of 0 still attends.",
    )


@_case("Tanh")
def _softcap(node: ir.Node, walk: Walk) -> Scores:
    inner = _first(node, walk)
    if inner.stages or inner.softcap is not None:
        raise Refusal(
            "K109", f"{label(node)} caps scores that were masked or capped before; softcap comes first, once."
        )
    return replace(inner, softcap=1.0)


@_case("Neg")
def _negated(node: ir.Node, walk: Walk) -> Scores:
    return _times(node, _first(node, walk), -1.0)


@_case("Add")
def _sum(node: ir.Node, walk: Walk) -> Scores:
    scores, term, _ = _either_side(node, walk)
    if uniform(term) == 0.0 and dims(node.outputs[0]) == scores.layout.here:
        return scores
    return scores.then(fill_of(term, first=not scores.stages) or Stage("add", term))


@_case("Sub")
def _difference(node: ir.Node, walk: Walk) -> Scores:
    left, right = inputs_of(node, 2)
    maximum = maximum_of(left, right)
    if maximum is not None:
        if maximum.axis != walk.axis:
            raise Refusal("K119", f"{label(maximum.nodes[0])} takes a maximum over other scores than the Softmax sums.")
        return read_scores(left, walk).then(Stage("shift")).through(*maximum.nodes)
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
            scores = read_scores(side, walk)
            if any(stage.kind == "sink" for stage in scores.stages):
                raise Refusal("K120", f"{label(node)} masks scores that a sink was appended to; mask them before.")
            return scores.then(Stage("fill", condition, keep_when, fill))
    raise Refusal("K111", f"{label(node)} selects between two tensors; a mask writes one constant.")


@_case("Cast")
def _cast(node: ir.Node, walk: Walk) -> Scores:
    scores = _first(node, walk)
    to = ir.DataType(attribute(node, "to", 0))
    if not to.is_floating_point():
        raise Refusal("K112", f"{label(node)} turns the scores into {to.name.lower()}.")
    return replace(scores, casts=(*scores.casts, to))


@_case("Identity")
def _identity(node: ir.Node, walk: Walk) -> Scores:
    return _first(node, walk)


@_case("Transpose")
def _transposed(node: ir.Node, walk: Walk) -> Scores:
    perm = permutation(node)
    if perm is None:
        raise Refusal("K201", f"The shape of {label(node)} is not known, so its axes cannot be told.")
    scores = read_scores(inputs_of(node, 1)[0], replace(walk, axis=perm[walk.axis] - len(perm)))
    return replace(scores, layout=scores.layout.transposed(node))


@_case("Reshape", "Unsqueeze", "Squeeze")
def _reshaped(node: ir.Node, walk: Walk) -> Scores:
    """Merging or splitting the axes before the keys leaves each row of scores as it is."""
    scores = _first(node, walk)
    if walk.axis != -1 and dims(node.outputs[0]) != scores.layout.here:
        raise Refusal("K115", f"{label(node)} reshapes the scores while the keys are not their last axis.")
    return replace(scores, layout=scores.layout.reshaped(node))


@_case("Concat")
def _appended(node: ir.Node, walk: Walk) -> Scores:
    """Columns beside the keys are keys of zeros whose logits the mask gives."""
    if len(node.inputs) != 2 or axis_from_right(node, 0) != walk.axis:
        raise Refusal("K120", f"{label(node)} joins scores to scores; a sink is one tensor of columns beside the keys.")
    scores, columns, at = _either_side(node, walk)
    width = dim(columns, walk.axis)
    if not isinstance(width, int):
        raise Refusal("K120", f"{label(node)} appends columns '{columns.name}' whose number is not known.")
    return _with_sink(node, scores, Stage("sink", columns, keep_when=at == 0, width=width))


@_case("Pad")
def _padded(node: ir.Node, walk: Walk) -> Scores:
    found = padding_of(node)
    if found is None or walk.axis != -1 or 0 not in found[:2]:
        raise Refusal("K120", f"{label(node)} pads the scores otherwise than by constant columns on one side.")
    front, back, number = found
    return _with_sink(node, _first(node, walk), Stage("sink", keep_when=not front, fill=number, width=front + back))


def _with_sink(node: ir.Node, scores: Scores, sink: Stage) -> Scores:
    frame = dims(node.outputs[0])
    if frame is None or not scores.layout.straight:
        raise Refusal("K120", f"{label(node)} appends columns to scores whose shape or order of axes is not known.")
    if any(stage.kind == "sink" for stage in scores.stages):
        raise Refusal("K120", f"{label(node)} appends columns to scores a second time.")
    return replace(scores.then(sink), layout=scores.layout.widened(frame[-1]))


@_case("Max", "Min", "Clip", "Relu")
def _clamped(node: ir.Node, walk: Walk) -> Scores:
    floor = floor_of(node)
    if floor is None:
        raise Refusal("K117", f"{label(node)} clamps the scores; an Attention op has no such step.")
    return read_scores(floor[0], walk).then(Stage("floor", fill=floor[1]))
