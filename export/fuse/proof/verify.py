"""Proves each fused block: how far it may differ from what it replaced, and that it does not differ more.

A region ends in the block's output and begins in tensors that both graphs have, so laws, emission and tidying are all
inside. Both sides run in float32, so they agree if their difference is within the sum of both error bounds. The bounds
are derived, not chosen, with u = 2^-24:

    attention   c * u * (2 + s) * A,  A = P @ |V|, s the row's largest scale * |Q| @ |K|^T, c = 10 a side
    rotation    c * u * (|x0| + |x1|) * (|cos| + |sin|),  c = 4 a side

because a dot product's rounding is relative to its absolute terms, and exp turns an error of s into a factor of s.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export import progress
from export.fuse.proof.compare import LAYOUT, Before, Comparison, visible
from export.fuse.proof.region import cut
from export.fuse.proof.running import Arrays
from export.fuse.proof.way import Way
from export.fuse.rows import Verification
from export.graph.values import Refusal

_ROUNDOFF = 2.0**-24
_ATTENTION = 20.0
_ROTATION = 8.0
_SHALLOW = 1e4
"""Masks up to this shift scores and add to their rounding error; deeper ones hide keys."""


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
    passed: dict[bytes, Verification] = {}
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
            verified[str(node.name)] = _in_one_view(views, node, opset, masked_rows, passed)
        except Refusal as refusal:
            # a rotary embedding that only its attention shows is put back first: attention never depends on it
            failures |= {str(n.name): refusal for n in hidden.get(node, [node])}
    progress.step("verify", len(todo), len(todo))
    return failures, verified


def _in_one_view(
    views: Sequence[Before], node: ir.Node, opset: int, masked_rows: str, passed: dict[bytes, Verification]
) -> Verification:
    """Verifies an op with rotary tables drawn; where that tells the two apart, with tables computed as the graph does.

    Tables that are drawn prove more, but it is in how they are computed that their halves are equal.
    """
    first: Refusal | None = None
    for view in views:
        try:
            return _verify(view, node, opset, masked_rows, passed)
        except Refusal as refusal:
            first = first or refusal
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


def _verify(
    old: Before, node: ir.Node, opset: int, masked_rows: str, passed: dict[bytes, Verification]
) -> Verification:
    places = [at for at, output in enumerate(node.outputs) if output.name]
    outputs = [_result(node, at, old) for at in places]
    rotates = node.op_type == "RotaryEmbedding"
    mask = node.inputs[3] if len(node.inputs) > 3 and not rotates else None
    ways = [] if rotates else [Way(node.outputs[at], end) for at, end in zip(places, outputs, strict=True)]
    factors = [value for way in ways for value in way.factors]
    comparison = Comparison(old, node, outputs, opset, masks=mask, masked_rows=masked_rows, also=factors)
    if comparison.twin is not None and comparison.twin in passed:
        return passed[comparison.twin]

    def bound(known: Arrays) -> list[np.ndarray]:
        if rotates:
            return [rotation_bound(node, known)]
        context, inside = attention_bounds(node, known)
        by_place = (context, *present_bounds(node, known), inside)
        return [way.carry(by_place[at], known) for at, way in zip(places, ways, strict=True)]

    found = comparison.run(bound)
    if comparison.twin is not None:
        passed[comparison.twin] = found
    return found


def _result(node: ir.Node, at: int, old: Before) -> ir.Value | None:
    """Returns the tensor where an op's output shows; a rotation's may be one part of a Concat."""
    parts = ("Concat", "Unsqueeze") if node.op_type == "RotaryEmbedding" else ()
    return visible(node.outputs[at], old.values, (*LAYOUT, *parts))


def _of(node: ir.Node, at: int, known: Arrays) -> np.ndarray | None:
    value = node.inputs[at] if at < len(node.inputs) else None
    return None if value is None else known[str(value.name)]


def rotation_bound(node: ir.Node, known: Arrays) -> np.ndarray:
    """Returns the error bound of a RotaryEmbedding's output, as one number for each row of channels."""
    x, cos, sin = (np.abs(known[str(v.name)].astype(np.float64)) for v in node.inputs[:3] if v is not None)
    size = 2.0 * x.max(initial=0.0) * (cos.max(initial=0.0) + sin.max(initial=0.0))
    return np.asarray(_ROTATION * _ROUNDOFF * size)


def present_bounds(node: ir.Node, known: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the error bounds of present_key and present_value: copies, but a rotation may stand in their region."""
    parts = [(_of(node, at, known), _of(node, at + 3, known)) for at in (1, 2)]
    largest = [max(float(np.abs(x).max(initial=0.0)) for x in pair if x is not None) for pair in parts]
    key, value = (np.asarray(_ROTATION * _ROUNDOFF * 2.0 * size) for size in largest)
    return key, value


def attention_bounds(node: ir.Node, known: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float32 error bounds of an Attention's output [B, H, S, Dv] and of the [B, H, S, T] inside it.

    Args:
        node: The Attention; its scale, softcap, past and is_causal, and which of its inside it gives, are read.
        known: The arrays by name: Q [B, H, S, D], K [B, Hkv, T, D], V [B, Hkv, T, Dv], and the mask, boolean
            (True = attend) or additive, broadcastable to [B, H, S, T].
    """
    q, k, v = (known[str(x.name)].astype(np.float64) for x in node.inputs[:3] if x is not None)
    mask, past = _of(node, 3, known), (_of(node, 4, known), _of(node, 5, known))
    if past[0] is not None and past[1] is not None:
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
    repeats = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeats, axis=1), np.repeat(v, repeats, axis=1)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else q.shape[-1] ** -0.5
    cap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
    scores = scale * (q @ k.swapaxes(-1, -2))
    size = abs(scale) * (np.abs(q) @ np.abs(k).swapaxes(-1, -2))
    if cap:
        scores = cap * np.tanh(scores / cap)
    if mask is not None:
        if mask.dtype == bool:
            scores = np.where(mask, scores, -np.inf)
        else:  # in float32, as both sides add it: a deep mask absorbs the scores
            scores = (scores.astype(np.float32) + mask.astype(np.float32)).astype(np.float64)
            size = size + np.where(np.abs(mask) <= _SHALLOW, np.abs(mask), 0.0)
    if "is_causal" in node.attributes and node.attributes["is_causal"].as_int():
        queries, keys = scores.shape[-2:]
        offset = 0 if past[0] is None else past[0].shape[2]
        scores = np.where(np.tri(queries, keys, offset, dtype=bool), scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    factor = _ATTENTION * _ROUNDOFF * (2.0 + size.max(axis=-1, keepdims=True))
    absolute = factor * (weights @ np.abs(v)) + _ROUNDOFF * np.abs(v).max(axis=-2, keepdims=True)
    mode = node.attributes["qk_matmul_output_mode"].as_int() if "qk_matmul_output_mode" in node.attributes else 0
    if mode != 3:  # a score is a dot product: its rounding is relative to its absolute terms
        return absolute, _ATTENTION * _ROUNDOFF * (1.0 + size)
    return absolute, factor * weights + _ROUNDOFF
