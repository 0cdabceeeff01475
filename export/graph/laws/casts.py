"""Law: a CastLike whose example has a known type is a Cast to that type, and no longer reads the example."""

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import made_by


def name_types(graph: ir.Graph) -> int:
    """Writes every CastLike of `graph` to a known type as Cast; returns how many."""
    named = 0
    for node in list(graph):
        if made_by(node.outputs[0] if node.outputs else None, "CastLike") is None or len(node.inputs) < 2:
            continue
        source, example = node.inputs[:2]
        if source is None or example is None or example.dtype is None:
            continue
        build = Builder(node, node.name or str(node.outputs[0].name))
        cast = build("Cast", source, dtype=example.dtype, shape=node.outputs[0].shape, to=int(example.dtype))
        take_place(node.outputs[0], cast)
        graph.remove(node, safe=True)
        named += 1
    return named
