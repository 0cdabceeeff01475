"""What attention weights can be, number by number: in [0, 1], and in a row without keys NaN or 0.

From this follows what a test of them (IsNaN, IsInf, x == x, x > 1) says, and that replacing infinities and clipping
to [0, 1] changes nothing: the spellings of `nan_to_num` and of guards against rows without keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from export.graph.values import made_by, uniform

_DEPTH = 8
_TESTS = ("IsNaN", "IsInf", "Not", "And", "Or", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")


@dataclass(frozen=True)
class Range:
    """Numbers in [0, 1], but in a row without keys what `empty` says."""

    empty: Literal["nan", "zero"]

    def kept_by(self, node: ir.Node) -> bool:
        """Says whether clamping by a Clip, Max, Min or Relu leaves every number in [0, 1] as it is."""
        low = high = None
        bounds = node.inputs[1:]
        if node.op_type == "Max":
            low = [uniform(v) for v in bounds]
        elif node.op_type == "Min":
            high = [uniform(v) for v in bounds]
        elif node.op_type == "Clip":
            low = [uniform(v) for v in bounds[:1] if v is not None]
            high = [uniform(v) for v in bounds[1:] if v is not None]
        return all(x is not None and x <= 0.0 for x in low or ()) and all(
            x is not None and x >= 1.0 for x in high or ()
        )


@dataclass(frozen=True)
class Guard:
    """A selection that leaves numbers as they are: the nodes of its condition, and what the weights are after it."""

    nodes: tuple[ir.Node, ...]
    result: Range


@dataclass(frozen=True)
class _Truth:
    """What a condition says of a number in [0, 1] and of a weight in a row without keys; None where that varies."""

    number: bool | None
    empty: bool | None
    nodes: tuple[ir.Node, ...] = ()


def selects(
    condition: ir.Value, chosen: ir.Value, otherwise: ir.Value, ranges: Mapping[ir.Value, Range]
) -> Guard | None:
    """Reads `where(condition, chosen, otherwise)` as a selection between the weights and a constant.

    Args:
        condition: A test of the weights.
        chosen: What stands where it holds: the weights, or a constant instead of them.
        otherwise: What stands where it does not.
        ranges: The tensors that hold the weights, and what they are.
    """
    truth = _truth(condition, ranges, _DEPTH)
    if truth is None or truth.number is None or truth.empty is None or not truth.nodes:
        return None
    number, empty = ((chosen if says else otherwise) for says in (truth.number, truth.empty))
    if number not in ranges:
        return None
    if empty in ranges:
        return Guard(truth.nodes, ranges[empty])
    return Guard(truth.nodes, Range("zero")) if uniform(empty) == 0.0 else None


def _truth(value: ir.Value, ranges: Mapping[ir.Value, Range], depth: int) -> _Truth | None:
    """Evaluates a condition on the weights; None where it reads anything else."""
    node = made_by(value, *_TESTS)
    if node is None or not depth:
        return None
    sources = [v for v in node.inputs if v is not None]
    if node.op_type in ("IsNaN", "IsInf"):
        source, between = _weights(sources[0], ranges)
        if source is None:
            return None
        return _Truth(False, node.op_type == "IsNaN" and source.empty == "nan", (*between, node))
    if node.op_type in ("Not", "And", "Or"):
        parts = [_truth(v, ranges, depth - 1) for v in sources]
        known = [p for p in parts if p is not None]
        if len(known) < len(parts):
            return None
        nodes = (*(n for p in known for n in p.nodes), node)
        return _Truth(
            _logic(node.op_type, [p.number for p in known]), _logic(node.op_type, [p.empty for p in known]), nodes
        )
    return _comparison(node, sources, ranges)


def _weights(value: ir.Value, ranges: Mapping[ir.Value, Range]) -> tuple[Range | None, tuple[ir.Node, ...]]:
    """Returns what a tensor can be if it holds the weights, their size or a copy in another type, and by what nodes."""
    nodes: tuple[ir.Node, ...] = ()
    while value not in ranges and (node := made_by(value, "Abs", "Cast")) is not None:
        source, dtype = node.inputs[0], value.dtype
        if source is None or dtype is None or not dtype.is_floating_point():
            break
        value, nodes = source, (node, *nodes)
    return ranges.get(value), nodes


def _logic(op: str, parts: list[bool | None]) -> bool | None:
    if op == "Not":
        return None if parts[0] is None else not parts[0]
    decides = op == "Or"
    if decides in parts:
        return decides
    return None if None in parts else not decides


def _comparison(node: ir.Node, sources: list[ir.Value], ranges: Mapping[ir.Value, Range]) -> _Truth | None:
    left, right = sources
    if left is right:
        found = ranges.get(left)
        holds = node.op_type in ("Equal", "LessOrEqual", "GreaterOrEqual")
        return None if found is None else _Truth(holds, holds and found.empty == "zero", (node,))
    swapped = uniform(left) is not None
    number = uniform(left if swapped else right)
    found, between = _weights(right if swapped else left, ranges)
    if number is None or found is None:
        return None
    tests = {
        "Equal": False if not 0.0 <= number <= 1.0 else None,
        "Less": _below(number, strict=True),
        "LessOrEqual": _below(number, strict=False),
        "Greater": _above(number, strict=True),
        "GreaterOrEqual": _above(number, strict=False),
    }
    mirrored = {"Less": "Greater", "Greater": "Less", "LessOrEqual": "GreaterOrEqual", "GreaterOrEqual": "LessOrEqual"}
    op = mirrored.get(node.op_type, node.op_type) if swapped else node.op_type
    nan = found.empty == "nan"  # a comparison with NaN never holds
    return _Truth(tests[op], False if nan else tests[op], (*between, node))


def _below(number: float, *, strict: bool) -> bool | None:
    """Says whether every x in [0, 1] is below a number, or none is."""
    if number > 1.0 or (number == 1.0 and not strict):
        return True
    return False if number < 0.0 or (number == 0.0 and strict) else None


def _above(number: float, *, strict: bool) -> bool | None:
    """Says whether every x in [0, 1] is above a number, or none is."""
    if number < 0.0 or (number == 0.0 and not strict):
        return True
    return False if number > 1.0 or (number == 1.0 and strict) else None
