"""MatMul, Softmax, MatMul again, for what no form of the operator says to the target.

The order of operations is the operator's own: sqrt(scale) on Q and on K, softcap, mask, softmax in the asked-for
precision. Grouped queries are folded into rows instead of repeating K and V.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.errors import LoweringRefusedError
from export.graph.build import Builder
from export.graph.values import Dim, dim, label
from export.lower.cache import outside
from export.lower.call import Call
from export.lower.fusable import unfused
from export.lower.heads import split
from export.lower.step import Step
from export.lower.targets import Target

_INNER = "an attention inside a branch or loop"


def lower_precision(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Drops softmax_precision where the kernel computes at least that precision anyway."""
    if call.precision is None or "softmax_precision" in row.extras:
        return call, ()
    if call.precision != call.dtype and not (call.precision == ir.DataType.FLOAT and not unfused(call, row)):
        return call, ()
    call = replace(call, precision=None)
    why = f"{row.title} refuses softmax_precision; its kernel computes the softmax in at least that precision."
    return call, (call.said("drop softmax precision", why),)


def lower_whole(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Decides whether the attention must be written out, and prepares it."""
    reasons = []
    if call.softcap and "softcap" not in row.extras:
        reasons.append("softcap")
    if call.score_mode is not None and call.score_mode not in row.scores:
        reasons.append(f"the scores as an output (mode {call.score_mode})")
    elif call.score_mode in (2, 3) and (call.masked or call.lengths is not None) and not row.hides(call.dtype):
        reasons.append(f"the scores of rows without keys in {call.dtype.name}")
    if call.precision is not None and "softmax_precision" not in row.extras:
        reasons.append(f"softmax_precision {call.precision.name}")
    size, value_size = call.head_size, call.value_head_size
    if "value size" not in row.extras and size is not None and value_size not in (None, size):
        reasons.append(f"V's head size {value_size} beside {size}")
    if call.inner and "subgraphs" not in row.extras:
        reasons.append(_INNER)
    if not reasons:
        return call, ()
    call = outside(split(replace(call, decomposed=True), build), build)
    how = "as the builder fuses it" if reasons == [_INNER] else "unfused"
    why = f"{row.title} does not compute {' and '.join(reasons)} on Attention; written out, it runs {how}."
    return call, (call.said("decompose", why),)


def write_decomposed(call: Call, build: Builder) -> tuple[ir.Value, ir.Value | None]:
    """Inserts the three steps and returns the output [B, H, S, Dv] and, where wanted, the scores [B, H, S, T]."""
    dtype, size = call.dtype, call.head_size
    if call.scale is None and size is None:
        raise LoweringRefusedError(
            f"{label(call.node)} has no scale and a head size that is not known; export a scale."
        )
    scale = call.scale if call.scale is not None else 1 / float(np.sqrt(size or 1))
    root = build.number(float(np.sqrt(scale)), dtype)
    query = build("Mul", call.query, root, dtype=dtype, shape=call.query.shape)
    key = build("Mul", call.key, root, dtype=dtype, shape=call.key.shape)
    group = _group(call)
    kv_heads = dim(call.key, 1)
    if group != 1:
        query = _fold(query, kv_heads, build)
    turned = build("Transpose", key, dtype=dtype, perm=(0, 1, 3, 2))
    scores = build("MatMul", query, turned, dtype=dtype)
    if group != 1:
        scores = _unfold(scores, call, build)
    shown = scores
    if call.softcap:
        cap = build.number(call.softcap, dtype)
        scores = build("Mul", build("Tanh", build("Div", scores, cap, dtype=dtype), dtype=dtype), cap, dtype=dtype)
    if call.score_mode != 0:
        shown = scores
    if call.bias is not None:
        scores = build("Add", scores, call.bias, dtype=dtype)
    if call.score_mode == 2:
        shown = _with_exact_mask(shown, call, build)
    if call.causal or call.keep is not None or call.window != (-1, -1) or call.lengths is not None:
        raise TypeError(f"{call.name}: a mask was left beside the scores")
    precision = call.precision or dtype
    if precision != dtype:
        scores = build("Cast", scores, dtype=precision, to=int(precision))
    softmax = build.node("Softmax", [scores], {"axis": -1}, dtypes=(precision,))
    softmax.name = call.name  # what a written-out attention is called by, here as in graphs that came so
    weights = softmax.outputs[0]
    if precision != dtype:
        weights = build("Cast", weights, dtype=dtype, to=int(dtype))
    if call.score_mode == 3:
        shown = weights
        if call.attends is not None:
            shown = build("Where", call.attends, weights, build.number(0.0, dtype), dtype=dtype)
    if group != 1:
        weights = _fold(weights, kv_heads, build)
    output = build("MatMul", weights, call.value, dtype=dtype)
    if group != 1:
        output = _unfold(output, call, build)
    return output, shown if call.score_mode is not None else None


def _group(call: Call) -> int:
    heads, kv_heads = dim(call.query, 1), dim(call.key, 1)
    if heads == kv_heads and heads is not None:
        return 1
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        raise LoweringRefusedError(
            f"{label(call.node)} cannot be written out: its numbers of heads are not known ({heads} and {kv_heads})."
        )
    return heads // kv_heads


def _fold(value: ir.Value, kv_heads: Dim | None, build: Builder) -> ir.Value:
    """Returns [B, H, S, X] as [B, Hkv, G*S, X]: head h uses key/value head h // G, so this only renames axes."""
    ends = build("Shape", value, dtype=ir.DataType.INT64, start=3, end=4)
    leading = build.axes(0, kv_heads if isinstance(kv_heads, int) else 1, -1)
    target = build("Concat", leading, ends, dtype=ir.DataType.INT64, axis=0)
    return build("Reshape", value, target, dtype=value.dtype)


def _unfold(value: ir.Value, call: Call, build: Builder) -> ir.Value:
    """Returns [B, Hkv, G*S, X] as [B, H, S, X]."""
    start = build("Shape", call.query, dtype=ir.DataType.INT64, start=0, end=3)
    target = build("Concat", start, build.axes(-1), dtype=ir.DataType.INT64, axis=0)
    return build("Reshape", value, target, dtype=value.dtype)


def _with_exact_mask(scores: ir.Value, call: Call, build: Builder) -> ir.Value:
    """Returns the scores with the mask as ONNX shows them: -inf where a key is hidden."""
    keep, bias = call.exact or (None, call.bias)
    if bias is not None:
        scores = build("Add", scores, bias, dtype=scores.dtype)
    if keep is not None:
        scores = build("Where", keep, scores, build.number(-np.inf, call.dtype), dtype=scores.dtype)
    return scores
