"""Which values of a graph are surely the same tensor, so that a builder that merges equal nodes sees one."""

from collections.abc import Hashable

import onnx_ir as ir

from export.graph.values import dims, graphs, uniform

_FORM = frozenset({"Expand", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_SAME = frozenset({"Dropout", "Identity"})


def attribute_key(node: ir.Node) -> Hashable:
    """Returns the attributes of a node, comparable by value."""
    found: list[tuple[str, Hashable]] = []
    for name in sorted(node.attributes):
        value = node.attributes[name].value
        if isinstance(value, ir.Graph):
            found.append((name, id(value)))
        elif isinstance(value, ir.TensorProtocol):
            found.append((name, (value.dtype, tuple(value.shape.numpy()), value.tobytes())))
        else:
            found.append((name, tuple(map(str, value)) if isinstance(value, (list, tuple)) else value))
    return tuple(found)


def number(model: ir.Model) -> dict[ir.Value, int]:
    """Returns a number for each value; equal numbers mean equal tensors (different ones need not differ)."""
    numbers: dict[ir.Value, int] = {}
    keys: dict[Hashable, int] = {}

    def of(value: ir.Value | None) -> int:
        if value is None:
            return -1
        return numbers.setdefault(value, keys.setdefault(("leaf", id(value)), len(keys)))

    for graph in graphs(model):
        for node in graph:
            inputs = tuple(of(v) for v in node.inputs)
            for index, output in enumerate(node.outputs):
                if index == 0 and _copies(node):
                    numbers[output] = inputs[0]
                else:
                    key = (node.op_identifier(), attribute_key(node), inputs, index)
                    numbers[output] = keys.setdefault(key, len(keys))
    return numbers


def _copies(node: ir.Node) -> bool:
    """Says whether a node hands on its first input unchanged, as an optimiser would find."""
    if not node.inputs or node.inputs[0] is None or node.domain not in ("", "ai.onnx"):
        return False
    source, output = node.inputs[0], node.outputs[0]
    if node.op_type in _SAME:
        return True
    if node.op_type == "Cast":
        return source.dtype is not None and source.dtype == output.dtype
    if node.op_type in _FORM:
        return dims(source) is not None and dims(source) == dims(output) and not _turns(node)
    if node.op_type in ("Mul", "Div") and len(node.inputs) == 2:
        return uniform(node.inputs[1]) == 1.0 and dims(source) == dims(output)
    return False


def _turns(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    if node.op_type != "Transpose":
        return False
    return perm is None or list(perm.as_ints()) != sorted(perm.as_ints())
