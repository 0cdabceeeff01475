"""Zero channels bring head sizes into the range of the fused kernel: the scores and the real outputs do not change.

Q and K get zeros that add nothing to their product, V gets channels that are cut off again. The scale is written out
first, because its default would follow the new size.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.lower.call import Call
from export.lower.heads import split
from export.lower.step import Step
from export.lower.targets import Target


def lower_sizes(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Pads Q and K, or V, to the one size a fused kernel can have; leaves what no padding can bring into its range."""
    size, value_size = call.head_size, call.value_head_size
    smallest, largest = row.fused_sizes
    if size is None or value_size is None or call.dtype not in row.fused_types:
        return call, ()
    wanted = max(size, value_size)
    if wanted < smallest:
        wanted = 16  # the next size that costs the builder no copies of its own
    if call.queries == 1:
        wanted = -(-wanted // row.one_query_step) * row.one_query_step
    if wanted > largest or (size == value_size == wanted) or call.softcap or call.score_mode is not None:
        return call, ()
    call = split(call, build)
    call = replace(
        call,
        scale=float(1 / np.sqrt(size)) if call.scale is None else call.scale,
        query=_pad(call.query, wanted - size, build),
        key=_pad(call.key, wanted - size, build),
        value=_pad(call.value, wanted - value_size, build),
        value_size=value_size if value_size != wanted else None,
    )
    why = f"{row.title} fuses equal head sizes of {smallest} to {largest}: {size} and {value_size} become {wanted}."
    return call, (call.said("pad heads", why),)


def _pad(value: ir.Value, channels: int, build: Builder) -> ir.Value:
    if channels == 0:
        return value
    shape = None
    if value.shape is not None:
        size = value.shape[3]
        shape = ir.Shape([*value.shape[:3], size + channels if isinstance(size, int) else None])
    pads = build.constant(np.asarray([*[0] * 7, channels], np.int64))
    return build("Pad", value, pads, dtype=value.dtype, shape=shape, mode="constant")


def unpad(value: ir.Value, size: int, build: Builder) -> ir.Value:
    """Returns the first `size` channels of [B, H, S, Dv]."""
    return build("Slice", value, build.axes(0), build.axes(size), build.axes(3), dtype=value.dtype)
