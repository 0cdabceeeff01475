"""TRT_decomposable=1: the attribute that lets TensorRT build an attention it has no fused kernel for.

It is no attribute of the operator, so the checker rejects a graph that has it: it goes on last, and comes off before
anyone else reads the graph.
"""

from dataclasses import replace

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import graphs
from export.lower.call import TRT_MARK, Call
from export.lower.fusable import length_may_be_one, one_query, unfused
from export.lower.step import Step
from export.lower.targets import Target


def lower_mark(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Marks an attention that may miss the row's fused kernel."""
    if row.marks == "none" or call.decomposed or call.marked:
        return call, ()
    never = unfused(call, row)
    once = one_query(call, row) if length_may_be_one(call) else None
    if never:
        why = f"{row.title} {never}: it is taken apart to build, and layers.json says what became of it."
    elif call.swapped and call.query_heads is None:
        why = f"{row.title} fuses it unless the profile fixes the batch, which stands in for the heads, at 1."
    elif once:
        why = f"{row.title} {once}: marked, it builds where a profile fixes the length at 1; any other is fused."
    elif row.marks == "all":
        why = f"What {row.title} fuses depends on the GPU; marked, it builds either way."
    else:
        return call, ()
    return replace(call, marked=True), (call.said("mark decomposable", why),)


def unmark(model: ir.Model) -> None:
    """Removes the marks from a model, in place."""
    for graph in graphs(model):
        for node in graph:
            node.attributes.pop(TRT_MARK, None)
