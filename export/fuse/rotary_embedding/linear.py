"""Reads channels as a linear combination of the channels of one tensor, each term with the tables that multiply it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from export.fuse.rotary_embedding.channels import Channels, operand, permuted_by, step
from export.fuse.rotary_embedding.tables import Factor

_STATES = 96
"""A rotation takes some twenty steps from its result to what it rotates."""


class NotLinearError(Exception):
    """The channels depend on the tensor in another way than by sums and products with tables."""


@dataclass(frozen=True)
class Base:
    """What is rotated: a tensor, its channels the last `tail` axes."""

    value: ir.Value
    tail: int


@dataclass(frozen=True)
class Term:
    """One term: the channels `pick` of the base, cast through `casts`, times a sign and factors."""

    sign: int
    pick: tuple[int, ...]
    casts: tuple[ir.DataType, ...] = ()
    factors: tuple[Factor, ...] = ()


def candidates(channels: Channels) -> Iterator[Base]:
    """Yields the tensors of which two different sets of channels meet in `channels`, the nearest first."""
    met: dict[Base, set[tuple[int, ...]]] = {}
    seen: set[Channels] = {channels}
    waiting = [channels]
    while waiting and len(seen) < _STATES:
        following: list[Channels] = []
        for current in waiting:
            for source in _sources(current):
                if source in seen:
                    continue
                seen.add(source)
                following.append(source)
                base = Base(source.value, source.tail)
                picks = met.setdefault(base, set())
                picks.add(source.pick)
                if len(picks) == 2:
                    yield base
        waiting = following


def _sources(channels: Channels) -> list[Channels]:
    moved = step(channels)
    if moved is not None:
        return list(moved)
    node = channels.value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type in ("Add", "Sub", "Mul", "Div"):
        return [o for v in node.inputs if v is not None and (o := operand(channels, v)) is not None]
    if node.op_type in ("Neg", "Cast") and node.inputs[0] is not None:
        return [replace(channels, value=node.inputs[0])]
    permuted = permuted_by(channels, node) if node.op_type == "MatMul" else None
    return [] if permuted is None else [permuted[0]]


def terms(channels: Channels, base: Base) -> tuple[Term, ...] | None:
    """Returns channels as a sum over channels of `base`; None where they are made without it.

    Raises:
        NotLinearError: They are made of it otherwise.
    """
    if channels.value is base.value:
        if channels.tail != base.tail:
            raise NotLinearError
        return (Term(1, channels.pick),)
    moved = step(channels)
    if moved is not None:
        found = [terms(part, base) for part in moved]
        if len(found) == 1:
            return found[0]
        if any(f is not None for f in found):
            raise NotLinearError
        return None
    node = channels.value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Neg", "Cast") and node.inputs[0] is not None:
        inner = terms(replace(channels, value=node.inputs[0]), base)
        if inner is None:
            return None
        return _negated(inner) if node.op_type == "Neg" else _cast(inner, node.outputs[0])
    if node.op_type in ("Mul", "Div"):
        return _multiplied(channels, node, base)
    if node.op_type in ("Add", "Sub"):
        return _added(channels, node, base)
    permuted = permuted_by(channels, node) if node.op_type == "MatMul" else None
    if permuted is None:
        return None
    inner = terms(permuted[0], base)
    if inner is None:
        return None
    if len(set(permuted[1])) != 1:
        raise NotLinearError
    return inner if permuted[1][0] == 1 else _negated(inner)


def _negated(found: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(replace(term, sign=-term.sign) for term in found)


def _cast(found: tuple[Term, ...], result: ir.Value) -> tuple[Term, ...]:
    """A Cast of channels that are not yet multiplied or added is a Cast of the base; any other rounds in between."""
    dtype = result.dtype
    if dtype is None or not dtype.is_floating_point() or len(found) != 1 or found[0].factors:
        raise NotLinearError
    return (replace(found[0], casts=(*found[0].casts, dtype)),)


def _two(channels: Channels, node: ir.Node) -> tuple[Channels, Channels]:
    left, right = (operand(channels, v) if v is not None else None for v in node.inputs)
    if left is None or right is None:
        raise NotLinearError
    return left, right


def _multiplied(channels: Channels, node: ir.Node, base: Base) -> tuple[Term, ...] | None:
    left, right = _two(channels, node)
    one, two = terms(left, base), terms(right, base)
    if one is None and two is None:
        return None
    if two is not None and (one is not None or node.op_type == "Div"):
        raise NotLinearError
    factor = Factor(right if two is None else left, inverse=node.op_type == "Div")
    return tuple(replace(term, factors=(*term.factors, factor)) for term in one or two or ())


def _added(channels: Channels, node: ir.Node, base: Base) -> tuple[Term, ...] | None:
    left, right = _two(channels, node)
    one, two = terms(left, base), terms(right, base)
    if one is None and two is None:
        return None
    if one is None or two is None or len(one) + len(two) > 2:
        raise NotLinearError
    return (*one, *(_negated(two) if node.op_type == "Sub" else two))
