"""Three axes [B, S, H*D] to four [B, H, S, D] and back, for the steps that work on single heads.

TensorRT-RTX packs the three-axis form with the same kernels as these Transposes, so nothing is lost where a step needs
them; where none does, the node stays as it is.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import dim
from export.lower.call import Call

_SWAP = (0, 2, 1, 3)


def split(call: Call, build: Builder) -> Call:
    """Returns the attention with Q, K and V of four axes."""
    if call.heads is None:
        return call
    query_heads, kv_heads = call.heads
    return replace(
        call,
        query=_split(call.query, query_heads, build),
        key=_split(call.key, kv_heads, build),
        value=_split(call.value, kv_heads, build),
        heads=None,
    )


def _split(value: ir.Value, heads: int, build: Builder) -> ir.Value:
    width = dim(value, 2)
    size = width // heads if isinstance(width, int) else -1
    batch, length = (value.shape[0], value.shape[1]) if value.shape is not None else (None, None)
    last = size if size > 0 else None
    apart = build(
        "Reshape",
        value,
        build.constant(np.asarray([0, 0, heads, size], np.int64)),
        dtype=value.dtype,
        shape=ir.Shape([batch, length, heads, last]),
    )
    shape = ir.Shape([batch, heads, length, last])
    return build("Transpose", apart, dtype=value.dtype, shape=shape, perm=_SWAP)


def merge(value: ir.Value, build: Builder) -> ir.Value:
    """Returns [B, H, S, Dv] as [B, S, H*Dv]."""
    turned = build("Transpose", value, dtype=value.dtype, perm=_SWAP)
    return build("Reshape", turned, build.constant(np.asarray([0, 0, -1], np.int64)), dtype=value.dtype)
