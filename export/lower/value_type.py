"""V in Q's type, where the target has one type for both."""

from dataclasses import replace

from export.errors import LoweringRefusedError
from export.graph.build import Builder
from export.graph.values import label
from export.lower.call import Call
from export.lower.step import Step
from export.lower.targets import Target


def lower_value_type(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Casts V to Q's type, which is the output's type too."""
    value = call.value
    if value.dtype in (None, call.dtype) or "value type" in row.extras:
        return call, ()
    if call.past is not None or call.presents[1] is not None:
        raise LoweringRefusedError(
            f"{label(call.node)} caches V as {value.dtype} beside Q as {call.dtype}, which {row.title} does not "
            "compute; export both in one type."
        )
    call = replace(call, value=build("Cast", value, dtype=call.dtype, shape=value.shape, to=int(call.dtype)))
    return call, (call.said("cast value", f"{row.title} computes Q and V in one type; the output has Q's anyway."),)
