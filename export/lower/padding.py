"""A mask that hides the keys from a length on becomes that length, where the target counts keys itself.

`arange(T) < lengths[:, None]` over [B, 1, 1, T] says what opset 24's nonpad_kv_seqlen says in B numbers. ONNX Runtime
then adds no mask to the scores; in processor time, 12 heads of 64: 1.02 times as fast at 128 tokens, 1.09 at 512. A
mask that comes in as a tensor may have its holes anywhere, and stays.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import array, dim, dims, integers, made_by
from export.lower.call import Call
from export.lower.step import Step
from export.lower.targets import Target

LENGTHS_OPSET = 24
"""First opset whose Attention takes nonpad_kv_seqlen."""
_INT = ir.DataType.INT64
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_SAME = ("Identity", "Unsqueeze", "Reshape", "Squeeze")


def lower_padding(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Puts valid lengths in the place of such a mask where nothing else decides what is seen."""
    alone = call.bias is None and not call.causal and call.window == (-1, -1) and call.past is None
    if "nonpad_kv_seqlen" not in row.extras or call.keep is None or not alone or call.lengths is not None:
        return call, ()
    if call.decomposed or call.score_mode is not None or call.attends is not None:
        return call, ()
    batch, keys = dim(call.query, 0), dim(call.key, 1 if call.heads else 2)
    lengths = valid_keys(call.keep, batch, keys)
    if lengths is None:
        return call, ()
    counts = build("Reshape", lengths, build.axes(-1), dtype=lengths.dtype, shape=ir.Shape([batch]))
    if counts.dtype != _INT:
        counts = build("Cast", counts, dtype=_INT, shape=counts.shape, to=int(_INT))
    axis = 1 if call.heads else 2
    most = build("Shape", call.key, dtype=_INT, shape=ir.Shape([1]), start=axis, end=axis + 1)
    counts = build("Max", counts, build.axes(0), dtype=_INT, shape=counts.shape)  # ONNX Runtime refuses other lengths
    counts = build("Min", counts, most, dtype=_INT, shape=counts.shape)
    why = f"{row.title} counts the valid keys itself: no mask is added to the scores."
    return replace(call, keep=None, lengths=counts), (call.said("count keys", why),)


def valid_keys(keep: ir.Value, batch: int | str | None, keys: int | str | None) -> ir.Value | None:
    """Returns the integers n, one a batch row, of a mask [B, 1, 1, T] that is `position < n`; None where it is not.

    Args:
        keep: Bool, True = attend.
        batch: B, by number or name.
        keys: T.
    """
    if batch is None or keys is None or batch == keys or dims(keep) != (batch, 1, 1, keys):
        return None
    value, node = keep, made_by(keep, *_SAME, "Not")
    seen = True
    while node is not None and node.inputs[0] is not None:
        seen = seen != (node.op_type == "Not")
        value = node.inputs[0]
        node = made_by(value, *_SAME, "Not")
    compared = made_by(value, *(("Less", "Greater") if seen else ("GreaterOrEqual", "LessOrEqual")))
    if compared is None or dims(value) is None or [d for d in dims(value) or () if d != 1] != _real(batch, keys):
        return None
    places, lengths = compared.inputs
    if compared.op_type in ("Greater", "LessOrEqual"):
        places, lengths = lengths, places
    if lengths is None or lengths.dtype not in _INTEGERS or not _counts(places, keys):
        return None
    ok = (dims(lengths) or (None,))[-1] == 1 and [d for d in dims(lengths) or () if d != 1] == _real(batch)
    return lengths if ok else None


def _real(*sizes: int | str) -> list[int | str]:
    return [size for size in sizes if size != 1]


def _counts(places: ir.Value | None, keys: int | str) -> bool:
    """Says whether a tensor [1, ..., T] is 0, 1, ... T - 1."""
    shape = dims(places)
    if places is None or not shape or shape[-1] != keys or any(d != 1 for d in shape[:-1]):
        return False
    data = array(places)
    if data is not None:
        return bool(np.array_equal(data.reshape(-1), np.arange(data.size)))
    node = made_by(places, *_SAME, "Cast", "Range")
    while node is not None and node.op_type != "Range":
        node = made_by(node.inputs[0], *_SAME, "Cast", "Range")
    return node is not None and integers(node.inputs[0]) == (0,) and integers(node.inputs[2]) == (1,)
