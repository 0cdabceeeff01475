"""A scale that is not positive: targets refuse it, or multiply Q and K by its square root, which is no number."""

from dataclasses import replace

from export.graph.build import Builder
from export.lower.call import Call
from export.lower.step import Step
from export.lower.targets import Target


def lower_scale(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Turns the sign of the scale into that of Q, or Q into zeros; what is left on the node is positive."""
    if call.scale is None or call.scale > 0 or "any scale" in row.extras:
        return call, ()
    if call.scale < 0:  # exact in every type
        query = build("Neg", call.query, dtype=call.dtype, shape=call.query.shape)
    else:
        query = build("Mul", call.query, build.number(0.0, call.dtype), dtype=call.dtype, shape=call.query.shape)
    why = f"{row.title} takes positive scales only; the sign of {call.scale:g} is Q's."
    return replace(call, query=query, scale=abs(call.scale) or 1.0), (call.said("scale on query", why),)
