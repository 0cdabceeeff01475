"""For targets whose Attention has one output: a key/value cache becomes a Concat, unread outputs go.

Where the target computes the cache itself but only into both present outputs, those that nobody reads are written too.
"""

from dataclasses import replace

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import Dim, dim
from export.lower.call import Call, take_place
from export.lower.heads import split
from export.lower.step import Step
from export.lower.targets import Target


def lower_cache(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Concatenates past and new keys and values; the present outputs are the results."""
    if "past" in row.extras:
        if call.past is None or None not in call.presents or "unread present" in row.extras:
            return call, ()
        why = f"{row.title} computes an attention with a past only where both of its present outputs are there."
        return replace(call, shows_present=True), (call.said("add present outputs", why),)
    steps = []
    if any(call.unread):
        steps.append(call.said("drop unread outputs", f"{row.title} refuses an Attention with more than one output."))
    if call.past is not None or call.presents != (None, None):
        call = outside(call, build)
        why = f"{row.title} has no past and present on Attention: they are a Concat."
        steps.append(call.said("cache outside", why))
    return call, tuple(steps)


def outside(call: Call, build: Builder) -> Call:
    """Returns the attention over the concatenated keys and values, its present outputs written."""
    if call.past is None and call.presents == (None, None):
        return call
    call = split(call, build)
    key, value, offset = call.key, call.value, call.offset
    if call.past is not None:
        past_key, past_value = call.past
        if call.causal or call.window != (-1, -1):
            offset = build("Shape", past_key, dtype=ir.DataType.INT64, shape=ir.Shape([1]), start=2, end=3)
        total = _total(call)
        key = _concat(past_key, key, total, build)
        value = _concat(past_value, value, total, build)
    for old, new in zip(call.presents, (key, value), strict=True):
        if old is not None:
            take_place(old, build("Identity", new, dtype=new.dtype, shape=new.shape))
    return replace(call, key=key, value=value, past=None, offset=offset)


def _total(call: Call) -> Dim:
    """Returns the length of past and new keys together, by the graph's own name where it has one."""
    for value in (*call.presents, None):
        length = dim(value, 2)
        if length is not None:
            return length
    return f"{call.name}_keys"


def _concat(past: ir.Value, new: ir.Value, total: Dim, build: Builder) -> ir.Value:
    shape = None
    if new.shape is not None and len(new.shape) == 4:
        shape = ir.Shape([new.shape[0], new.shape[1], total, new.shape[3]])
    return build("Concat", past, new, dtype=new.dtype, shape=shape, axis=2)
