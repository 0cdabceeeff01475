"""One head under a mask: batch and head change places, because the fused kernel takes a mask from two heads on.

[B, 1, S, D] and [1, B, S, D] hold the same numbers in the same order; every batch row has a mask of its own either way.
"""

from dataclasses import replace

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import dim
from export.lower.call import Call
from export.lower.heads import split
from export.lower.shapes import known
from export.lower.step import Step
from export.lower.targets import Target

_SWAP = (1, 0, 2, 3)


def lower_single_head(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Exchanges the batch and head axes of Q, K, V and the mask where there is one head and more than one batch row."""
    if call.query_heads != 1 or not call.masked or row.masked_heads < 2 or call.decomposed:
        return call, ()
    if dim(call.query, 0) == 1 or call.dtype not in row.fused_types or call.bias is None or call.causal:
        return call, ()
    call = split(call, build)
    call = replace(
        call,
        query=swap(call.query, build),
        key=swap(call.key, build),
        value=swap(call.value, build),
        bias=swap(call.bias, build),
        swapped=True,
    )
    why = f"{row.title} fuses a mask from {row.masked_heads} heads on, so the batch rows stand in for heads."
    return call, (call.said("batch as heads", why),)


def swap(value: ir.Value | None, build: Builder) -> ir.Value:
    """Returns a value of four axes with the first two exchanged."""
    if value is None:
        raise TypeError("there is no value to exchange axes of")
    shape = known(value)
    turned = None if shape is None else ir.Shape([shape[1], shape[0], *shape[2:]])
    return build("Transpose", value, dtype=value.dtype, shape=turned, perm=_SWAP)
