"""Proves each fused block: how far it may differ from what it replaced, and that it does not differ more.

A region ends in the block's output and begins in tensors that both graphs have, so laws, emission and tidying are all
inside. Both sides run in float32, so they agree if their difference is within the sum of both error bounds
(error_bounds.py). One region is open at a time, and it is inside one that work goes to several threads: the blocks of a
model are mostly one computation, which runs once, so of 96 ops of 32 layers four are run, and cutting and comparing
the others is Python's work, which threads do not share. So at no time more is held than the inputs and results of one
region, what ONNX Runtime needs to run one side of it, and the pieces that error_bounds.py has in hand.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export import progress
from export.fuse.proof.compare import LAYOUT, Before, Comparison, visible
from export.fuse.proof.error_bounds import attention_bounds, present_bounds, rotation_bound
from export.fuse.proof.region import cut, dependent
from export.fuse.proof.running import Arrays
from export.fuse.proof.twins import Twins
from export.fuse.proof.way import Way
from export.fuse.rows import Verification
from export.graph.values import Refusal

_DIFFERS = ("V905", "V906", "V907")
"""What a comparison says whose two sides ran and gave something else."""


def verify(
    before: ir.Model, after: ir.Model, nodes: Sequence[ir.Node], masked_rows: str
) -> tuple[dict[str, Refusal], dict[str, Verification]]:
    """Runs every op that fusing wrote against what it replaced.

    Args:
        before: The model before fusing.
        after: The model after fusing; values that both have under one name are the same tensor.
        nodes: The Attention and RotaryEmbedding nodes that fusing wrote into `after`.
        masked_rows: The policy that was asked for.

    Returns:
        Why some are wrong, and the measurements of the right ones, both by node name.
    """
    old, opset = Before.of(before), after.graph.opset_imports.get("", 23)
    tables = [v for n in nodes if n.op_type == "RotaryEmbedding" for v in n.inputs[1:3] if v is not None]
    made = {str(v.name) for n in cut(tables, lambda _: False).nodes for v in n.outputs}
    views = (old, replace(old, settled=old.settled | made)) if made else (old,)
    twins = Twins()
    failures: dict[str, Refusal] = {}
    verified: dict[str, Verification] = {}
    waiting, hidden = list(nodes), dict[ir.Node, list[ir.Node]]()
    for node in nodes:
        attentions = _attentions_after(node) if _result(node, 0, old) is None else []
        if node.op_type == "RotaryEmbedding" and attentions:
            waiting.remove(node)
            for attention in attentions:
                hidden.setdefault(attention, []).append(node)
    todo = [*waiting, *(n for n in hidden if n not in waiting)]
    for at, node in enumerate(todo):
        progress.step("verify", at, len(todo))
        try:
            verified[str(node.name)] = _in_one_view(views, node, opset, masked_rows, twins)
        except Refusal as refusal:
            # a rotary embedding that only its attention shows is put back first: attention never depends on it
            failures |= {str(n.name): refusal for n in hidden.get(node, [node])}
    progress.step("verify", len(todo), len(todo))
    return failures, verified


def _in_one_view(views: Sequence[Before], node: ir.Node, opset: int, masked_rows: str, twins: Twins) -> Verification:
    """Verifies an op with rotary tables drawn; where that tells the two apart, with tables computed as the graph does.

    Tables that are drawn prove more, but it is in how they are computed that their halves are equal.
    """
    first: Refusal | None = None
    for view in views:
        try:
            return _verify(view, node, opset, masked_rows, twins)
        except Refusal as refusal:
            first = first or Refusal(refusal.code, refusal.sentence)  # without the frames, which hold the arrays
    if first is None:
        raise ValueError("no view of the graph before is given")
    raise first


def _attentions_after(rotary: ir.Node) -> list[ir.Node]:
    """Returns the attentions that read a rotary embedding's result through layout changes."""
    found: list[ir.Node] = []
    waiting = [rotary.outputs[0]]
    while waiting:
        for user, _ in waiting.pop().uses():
            if user.op_type == "Attention":
                found.append(user)
            elif user.op_type in ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Concat", "Mul", "Expand"):
                waiting.append(user.outputs[0])
    return found


def _verify(old: Before, node: ir.Node, opset: int, masked_rows: str, twins: Twins) -> Verification:
    """Verifies an op with every tensor drawn where both graphs have it; where that tells the two apart, with those
    computed that are made of others: an op may read one of them twice where the graph before read what it made of it.
    """
    places = [at for at, output in enumerate(node.outputs) if output.name]
    outputs = [_result(node, at, old) for at in places]
    rotates = node.op_type == "RotaryEmbedding"
    mask = node.inputs[3] if len(node.inputs) > 3 and not rotates else None
    ways = [] if rotates else [Way(node.outputs[at], end) for at, end in zip(places, outputs, strict=True)]
    factors = [value for way in ways for value in way.factors]
    comparison = Comparison(old, node, outputs, opset, masks=mask, masked_rows=masked_rows, also=factors)
    twin = comparison.twin(twins)
    if twin is not None and twin in twins.passed:
        return twins.passed[twin]

    def bound(known: Arrays) -> list[np.ndarray]:
        if rotates:
            return [rotation_bound(node, known)]
        context, inside = attention_bounds(node, known, inside=3 in places)
        by_place = (context, *present_bounds(node, known), inside)
        return [way.carry(by_place[at], known) for at, way in zip(places, ways, strict=True)]

    try:
        found = comparison.run(bound)
    except Refusal as refusal:
        related = dependent(comparison.leaves, old.values) - old.settled
        if refusal.code not in _DIFFERS or not related:
            raise
        try:
            return _verify(replace(old, settled=old.settled | related), node, opset, masked_rows, twins)
        except Refusal:
            raise refusal from None
    if twin is not None:
        twins.passed[twin] = found
    return found


def _result(node: ir.Node, at: int, old: Before) -> ir.Value | None:
    """Returns the tensor where an op's output shows; a rotation's may be one part of a Concat."""
    parts = ("Concat", "Unsqueeze") if node.op_type == "RotaryEmbedding" else ()
    return visible(node.outputs[at], old.values, (*LAYOUT, *parts))
