"""Causal, window and valid-length rules become a mask where the target drops or misreads them.

The rules, from the operator's text: query i stands at position p = offset + i, where offset is the length of the past,
or lengths[b] - S with nonpad_kv_seqlen, or 0. It sees key j if j <= p (causal), p - left <= j <= p + right (window) and
j < lengths[b].
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import Dim, dim
from export.lower.call import Call
from export.lower.shapes import broadcast
from export.lower.step import Step
from export.lower.targets import Target

_INT, _BOOL = ir.DataType.INT64, ir.DataType.BOOL


def lower_structure(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Folds into `keep` those rules that the row does not honour on this node."""
    if call.causal and call.offset is not None and call.queries == 1 and call.in_step:
        # One query after a cache, with its key, stands at the last key: it sees all of them.
        call = replace(call, causal=False)
    window = call.window != (-1, -1) and ("window" not in row.extras or call.decomposed)
    honoured = call.counted or ("nonpad_kv_seqlen" in row.extras and row.hides(call.dtype))
    lengths = call.lengths is not None and (call.decomposed or not honoured)
    crowded = call.keep is not None or call.bias is not None or window or lengths
    together = "mask and causal" in row.extras and row.hides(call.dtype)
    causal = call.causal and (
        call.offset is not None or lengths or call.decomposed or (crowded and not together) or _alone(call, row)
    )
    if not (window or lengths or causal):
        return call, ()
    places = _Places(call, build)
    rules = []
    if causal:
        rules.append(places.compare("LessOrEqual", places.query))
    if window:
        left, right = call.window
        if left >= 0:
            rules.append(places.compare("GreaterOrEqual", places.shifted("Sub", left)))
        if right >= 0:
            rules.append(places.compare("LessOrEqual", places.shifted("Add", right)))
    if lengths and places.valid is not None:
        rules.append(places.compare("Less", places.valid))
    # A row stands at a key of its own unless a mask, a length or a shorter K takes that key away.
    square = dim(call.query, 1 if call.heads else 2) == dim(call.key, 1 if call.heads else 2) is not None
    cached = call.offset is not None or call.past is not None
    certain = call.keep is None and call.lengths is None and (not window or cached or square)
    keep = call.keep
    for rule in rules:
        keep = rule if keep is None else build("And", keep, rule, dtype=_BOOL, shape=broadcast(keep.shape, rule.shape))
    names = [n for n, folded in (("causal", causal), ("window", window), ("valid lengths", lengths)) if folded]
    call = replace(
        call,
        keep=keep,
        causal=call.causal and not causal,
        window=(-1, -1) if window else call.window,
        lengths=None if lengths else call.lengths,
        may_be_empty=not certain,
    )
    return call, (call.said(f"fold {' and '.join(names)}", _why(call, row, window, lengths)),)


def _alone(call: Call, row: Target) -> bool:
    """Says whether a single query after a past might not stand at the last key, where the row takes it for granted."""
    single = call.queries == 1 or not isinstance(call.queries, int)
    return call.past is not None and single and not call.in_step and "one query among new keys" not in row.extras


def _why(call: Call, row: Target, window: bool, lengths: bool) -> str:
    if call.decomposed:
        return "Written out, an attention has no attributes left to hold these rules, so they are part of the mask."
    if lengths:
        return f"{row.title} drops nonpad_kv_seqlen without a word, so it is part of the mask."
    if window:
        return f"{row.title} does not honour the attention window, so it is part of the mask."
    if call.past is not None and "past" in row.extras and "mask and causal" in row.extras:
        return f"{row.title} lets a single query after a past see every key, so is_causal is part of the mask."
    return f"{row.title} knows is_causal only alone and from key 0, so it is part of the mask."


class _Places:
    """Positions, written once: `key` [T], `query` [S, 1] or [B, 1, S, 1], `valid` [B, 1, 1, 1] or None."""

    def __init__(self, call: Call, build: Builder) -> None:
        self._build = build
        axis = 1 if call.heads else 2
        zero, one = build.constant(np.asarray(0, np.int64)), build.constant(np.asarray(1, np.int64))

        def count(value: ir.Value, at: int) -> ir.Value:
            return build("Shape", value, dtype=_INT, shape=ir.Shape([1]), start=at, end=at + 1)

        def up_to(length: ir.Value, name: Dim | None) -> ir.Value:
            scalar = build("Squeeze", length, dtype=_INT, shape=ir.Shape([]))
            return build("Range", zero, scalar, one, dtype=_INT, shape=ir.Shape([name]))

        queries, keys, offset = count(call.query, axis), count(call.key, axis), call.offset
        key_name = dim(call.key, axis)
        if call.past is not None:
            offset, key_name = count(call.past[0], 2), None
            keys = build("Add", offset, keys, dtype=_INT, shape=ir.Shape([1]))
        query_name = dim(call.query, axis)
        self.key = up_to(keys, key_name)
        shape = ir.Shape([query_name, 1])
        self.query = build("Unsqueeze", up_to(queries, query_name), build.axes(1), dtype=_INT, shape=shape)
        self.valid: ir.Value | None = None
        if call.lengths is not None:
            batch = ir.Shape([dim(call.lengths, 0), 1, 1, 1])
            self.valid = build("Reshape", call.lengths, build.axes(-1, 1, 1, 1), dtype=_INT, shape=batch)
            offset = build("Sub", self.valid, queries, dtype=_INT, shape=batch)
        if offset is not None:
            placed = broadcast(self.query.shape, offset.shape)
            self.query = build("Add", self.query, offset, dtype=_INT, shape=placed)

    def shifted(self, op: str, by: int) -> ir.Value:
        """Returns the queries' positions moved by a window bound."""
        return self._build(op, self.query, self._build.axes(by), dtype=_INT, shape=self.query.shape)

    def compare(self, op: str, other: ir.Value) -> ir.Value:
        """Returns `key op other` as a bool mask."""
        return self._build(op, self.key, other, dtype=_BOOL, shape=broadcast(self.key.shape, other.shape))
