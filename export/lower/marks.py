"""TRT_decomposable=1: the attribute that lets TensorRT build an attention it has no fused kernel for.

It is no attribute of the operator, so the checker rejects a graph that has it: it goes on last, and comes off before
anyone else reads the graph.
"""

from dataclasses import replace

import onnx_ir as ir

from export.fuse.build import Builder
from export.fuse.graph import graphs
from export.lower.call import TRT_MARK, Call
from export.lower.fusable import fusable
from export.lower.step import Step
from export.lower.targets import Target


def lower_mark(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Marks an attention that may miss the row's fused kernel."""
    if row.marks == "none" or call.decomposed or call.marked:
        return call, ()
    smallest, largest = row.fused_sizes
    if not fusable(call, row):
        why = (
            f"{row.title} has no fused kernel for {call.dtype.name} with head size {call.head_size or 'unknown'} "
            f"(half precision, {smallest} to {largest}): it runs unfused."
        )
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
