"""When two comparisons are one: regions that are the same computation, name by name, get the same verdict.

A model repeats its block many times. Weights stay outside a region, so the regions of most blocks are the same graph,
drawn the same inputs, and run to the same bits; only one of them need run. Equal means equal bytes once the tensors
are numbered in the order they appear: operators, attributes, constants, types, shapes and symbols all count.
"""

import hashlib
from collections.abc import Iterable

import onnx
import onnx_ir as ir


class _Numbers(dict[str, str]):
    """Gives each name a number when it is first asked for; no name stays no name."""

    def __missing__(self, name: str) -> str:
        self[name] = f"t{len(self)}" if name else ""
        return self[name]


def fingerprint(
    models: Iterable[onnx.ModelProto], leaves: Iterable[ir.Value], masks: Iterable[str], ends: Iterable[ir.Value]
) -> bytes | None:
    """Returns what is equal for two comparisons only if they compute the same, or None where that is not told.

    Args:
        models: The region before and after.
        leaves: The tensors that are drawn, in the order they are drawn.
        masks: The names of those that are drawn as masks.
        ends: The values of the op that the error bounds are computed from and for.
    """
    numbers = _Numbers()
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(f"{numbers[str(leaf.name)]} {leaf.dtype} {leaf.shape};".encode())
    for model in models:
        renamed = onnx.ModelProto()
        renamed.CopyFrom(model)
        graph = renamed.graph
        for node in graph.node:
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                return None  # names inside a body are not numbered
            _number(node.input, numbers)
            _number(node.output, numbers)
            node.ClearField("name")
            node.ClearField("doc_string")
            del node.metadata_props[:]
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    attribute.t.ClearField("name")
        for held in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            held.name = numbers[held.name]
        digest.update(renamed.SerializeToString(deterministic=True))
    digest.update(" ".join(numbers[name] for name in sorted(masks, key=numbers.__getitem__)).encode())
    digest.update(" ".join(numbers[str(end.name)] for end in ends).encode())
    return digest.digest()


def _number(names: list[str], numbers: _Numbers) -> None:
    names[:] = [numbers[name] for name in names]
