"""Proves from the graph that a condition holds only where the scores are -inf: such weights are zero already.

A condition is read backwards as the scores are: through Not, And and Or, through the reductions that ask it of every
key of a row (`all`, `any`, `max`, `sum`), to a comparison of a mask or of the scores themselves with a number. Every
step is an implication that holds for all inputs; what has none is simply not proved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import onnx_ir as ir

from export.fuse.scores import Scores, Stage
from export.graph.laws.levels import zero_or_one
from export.graph.values import Dim, array, dims, integers, made_by, rank, same, uniform

_DEPTH = 24
"""Nodes of one condition beyond which the proof is given up."""

_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_COMPARE = {"Equal": "==", "Less": "<", "Greater": ">", "LessOrEqual": "<=", "GreaterOrEqual": ">="}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True)
class Comparison:
    """`value op number`, element by element."""

    value: ir.Value
    op: str
    number: float


def compared(value: ir.Value, truth: bool) -> Comparison | None:
    """Reads a boolean as a comparison of a tensor with a constant number, or returns None."""
    node = made_by(value, *_COMPARE, "Cast")
    if node is None:
        return None
    if node.op_type == "Cast":
        source = node.inputs[0]
        if source is None or source.dtype in (None, ir.DataType.BOOL) or value.dtype != ir.DataType.BOOL:
            return None
        return Comparison(source, "!=" if truth else "==", 0.0)
    tensor, other = node.inputs[:2]
    op, number = _COMPARE[node.op_type], uniform(other)
    if number is None:
        op, number, tensor = _MIRRORED[op], uniform(tensor), other
    if number is None or tensor is None:
        return None
    return Comparison(tensor, op if truth else _OPPOSITE[op], number)


class Hidden:
    """What implies that a key is hidden, given the scores as they were read."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def every(self, value: ir.Value, truth: bool) -> bool:
        """Says whether `value == truth` for a row [..., S, 1] implies that all its keys are hidden."""
        placed = dims(value)
        return placed is not None and self._every(value, truth, _DEPTH, placed)

    def _every(self, value: ir.Value, truth: bool, depth: int, placed: tuple[Dim, ...]) -> bool:
        step = made_by(value, "Unsqueeze", "Reshape", "Squeeze")
        if step is not None and step.inputs[0] is not None and depth > 0:  # it stands where `placed` says
            return self._every(step.inputs[0], truth, depth - 1, placed)
        shape = dims(value)

        def ask(source: ir.Value, truth: bool, depth: int) -> bool:
            whole = placed if dims(source) == shape else dims(source) if shape == placed else None
            return whole is not None and self._every(source, truth, depth, whole)

        logic = self._logic(value, truth, depth, ask)
        if logic is not None:
            return logic
        found = compared(value, truth)
        reduced = None if found is None else _over_keys(found.value, placed)
        if found is None or reduced is None:
            return False
        each = _of_each(reduced, found)
        return each is not None and self._number(each, depth - 1)

    def key(self, value: ir.Value, truth: bool, depth: int = _DEPTH) -> bool:
        """Says whether `value == truth` for a key implies that it is hidden."""
        logic = self._logic(value, truth, depth, self.key)
        if logic is not None:
            return logic
        value = _aligned(value)
        for at, stage in enumerate(self._scores.stages):
            if stage.kind == "fill" and stage.fill == -inf and stage.value is not None and self._stays(at + 1):
                have = positive(stage.value, stage.keep_when)
                want = positive(value, not truth)
                if have[1] == want[1] and same(_aligned(have[0]), want[0]):
                    return True
        found = compared(value, truth)
        return found is not None and self._number(found, depth - 1)

    def _logic(
        self, value: ir.Value, truth: bool, depth: int, ask: Callable[[ir.Value, bool, int], bool]
    ) -> bool | None:
        """Decides Not, And and Or by their inputs, a constant by its elements; None for anything else."""
        if depth <= 0:
            return False
        data = array(value)
        if data is not None:
            return not bool((data == truth).any())
        node = made_by(value, "Not", "And", "Or", "Identity")
        if node is None:
            return None
        sources = [v for v in node.inputs if v is not None]
        if node.op_type in ("Not", "Identity"):
            return ask(sources[0], truth if node.op_type == "Identity" else not truth, depth - 1)
        answers = (ask(v, truth, depth - 1) for v in sources)
        return any(answers) if truth == (node.op_type == "And") else all(answers)

    def _number(self, found: Comparison, depth: int) -> bool:
        """Says whether a comparison that holds for a key implies that it is hidden."""
        if depth <= 0:
            return False
        value = _aligned(found.value)
        cast = made_by(value, "Cast")
        source = cast.inputs[0] if cast is not None else None
        if source is not None and source.dtype == ir.DataType.BOOL:
            holds = [truth for truth in (False, True) if _HOLDS[found.op](float(truth), found.number)]
            return all(self.key(source, truth, depth - 1) for truth in holds)
        if source is not None and zero_or_one(source):
            return self._number(Comparison(source, found.op, found.number), depth - 1)
        lowest = found.op in ("==", "<=") and found.number == -inf
        return lowest and self._is_lowest(value, depth)

    def _is_lowest(self, value: ir.Value, depth: int) -> bool:
        """Says whether a key is hidden where `value` is -inf."""
        value = _aligned(value)
        if depth <= 0:
            return False
        if uniform(value) not in (None, -inf):
            return True  # never there
        for mark in self._scores.marks:
            if mark.value is value:
                return mark.layout == self._scores.layout and not self._narrowed() and self._stays(mark.stages)
        if any(same(value, atom) for atom in self._atoms()):
            return True
        node = made_by(value, "Add", "Where", "Cast")
        if node is None:
            return False
        sources = [v for v in node.inputs if v is not None]
        if node.op_type == "Add":
            return all(self._is_lowest(v, depth - 1) for v in sources)
        if node.op_type == "Cast":
            return _widens(sources[0], value) and self._is_lowest(sources[0], depth - 1)
        condition, *branches = sources
        return all(
            self._is_lowest(branch, depth - 1) or self.key(condition, truth, depth - 1)
            for branch, truth in zip(branches, (True, False), strict=True)
        )

    def _atoms(self) -> list[ir.Value]:
        """Returns the tensors whose -inf makes a score -inf: what is added, and what that is a sum of."""
        found: list[ir.Value] = []
        for at, stage in enumerate(self._scores.stages):
            if stage.kind == "add" and stage.value is not None and self._stays(at + 1):
                found += _summands(stage.value)
        return found

    def _narrowed(self) -> bool:
        """Says whether a cast on the way can make -inf of a finite score."""
        dtype = self._scores.query.value.dtype
        return dtype is None or any(float(to.max) < float(dtype.max) for to in self._scores.casts)

    def _stays(self, at: int) -> bool:
        """Says whether a score that is -inf before stage `at` is -inf at the end."""
        return all(_keeps_lowest(stage) for stage in self._scores.stages[at:])


def _keeps_lowest(stage: Stage) -> bool:
    if stage.kind == "fill":
        return stage.fill == -inf
    return stage.kind in ("add", "subtract", "shift", "sink") or (stage.kind == "scale" and stage.fill > 0.0)


def _summands(value: ir.Value) -> list[ir.Value]:
    found, waiting = list[ir.Value](), [value]
    while waiting and len(found) < _DEPTH:
        current = _aligned(waiting.pop())
        found.append(current)
        node = made_by(current, "Add", "Cast")
        if node is not None and (node.op_type == "Add" or _widens(node.inputs[0], current)):
            waiting += [v for v in node.inputs if v is not None]
    return found


def _widens(source: ir.Value | None, result: ir.Value) -> bool:
    """Says whether a Cast keeps finite numbers finite."""
    if source is None or source.dtype is None or result.dtype is None:
        return False
    floats = source.dtype.is_floating_point() and result.dtype.is_floating_point()
    return floats and float(source.dtype.max) <= float(result.dtype.max)


def positive(condition: ir.Value, keep_when: bool) -> tuple[ir.Value, bool]:
    """Returns a condition without its negations, and the truth value that keeps."""
    while (negation := made_by(condition, "Not")) is not None and negation.inputs[0] is not None:
        condition, keep_when = negation.inputs[0], not keep_when
    return condition, keep_when


def _aligned(value: ir.Value) -> ir.Value:
    """Goes back through what leaves a tensor's place among the scores: copies, and new axes before all others."""
    while (node := made_by(value, "Identity", "Expand", "Unsqueeze")) is not None and node.inputs[0] is not None:
        if node.op_type == "Unsqueeze":
            axes, length = integers(node.inputs[1]), rank(value)
            if axes is None or length is None or sorted(a % length for a in axes) != list(range(len(axes))):
                return value
        value = node.inputs[0]
    return value


def _over_keys(value: ir.Value, placed: tuple[Dim, ...]) -> ir.Node | None:
    """Returns the reduction over the last axis that the numbers of the rows `placed` as [..., S, 1] are."""
    while (node := made_by(value, "Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity")) is not None:
        source = node.inputs[0]
        if source is None or (node.op_type == "Cast" and not zero_or_one(source) and not _widens(source, value)):
            break
        value = source
    node = made_by(value, "ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean")
    reduced = dims(node.inputs[0]) if node is not None else None
    if node is None or reduced is None:
        return None
    named = node.attributes.get("axes")
    axes = tuple(named.as_ints()) if named is not None else integers(node.inputs[1] if len(node.inputs) > 1 else None)
    last = axes in ((-1,), (len(reduced) - 1,))
    return node if last and _without_ones((*reduced[:-1], 1)) == _without_ones(placed) else None


def _without_ones(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Returns a shape without the axes of 1 that broadcasting puts before it."""
    found = list(shape)
    while len(found) > 1 and found[0] == 1:
        del found[0]
    return tuple(found)


def _of_each(reduction: ir.Node, found: Comparison) -> Comparison | None:
    """Returns what a comparison of a row's reduction says of every element of the row, or None."""
    value, op, number = reduction.inputs[0], found.op, found.number
    if value is None:
        return None
    match reduction.op_type:
        case "ReduceMax" if op in ("==", "<=", "<"):
            return Comparison(value, "<=" if op == "==" else op, number)
        case "ReduceMin" if op in ("==", ">=", ">"):
            return Comparison(value, ">=" if op == "==" else op, number)
        case "ReduceMin" if op == "!=" and number == 0.0 and zero_or_one(value):
            return Comparison(value, "==", 1.0)
        case "ReduceSum" if op in ("==", "<=", "<") and not _HOLDS["<" if op == "<" else "<="](1.0, number):
            return Comparison(value, "==", 0.0) if zero_or_one(value) else None
        case "ReduceMean" if op in ("==", "<=") and number == 0.0:
            return Comparison(value, "==", 0.0) if zero_or_one(value) else None
    return None
