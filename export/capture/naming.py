"""The graph's inputs and outputs under forward's names, and nothing else under those."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.capture.symbols import values

if TYPE_CHECKING:
    import onnx_ir as ir


def output_names(wanted: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Returns output names that differ from one another and from every input's."""
    taken = set(inputs)
    names = []
    for name in wanted:
        free = name if name not in taken else f"{name}_out"
        while free in taken:
            free += "_"
        taken.add(free)
        names.append(free)
    return names


def apply(model: "ir.Model", inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Names a model's inputs and outputs in place; returns the names of inputs that were dropped as unused.

    An output that is also an input, a weight or another output gets an Identity of its own, since a value has one name.
    An input that reaches nothing is removed: ONNX Runtime would demand it and TensorRT would not know it.

    Args:
        model: A model whose inputs and outputs are in the order of the names.
        inputs: As many names as the graph has inputs.
        outputs: As many names as the graph has outputs.
    """
    graph = model.graph
    _separate_outputs(graph)
    reserved = {*inputs, *outputs}
    ends = [*graph.inputs, *graph.outputs]
    for value in list(values(model)):
        if value.name in reserved and not any(value is end for end in ends):
            set_name(graph, value, f"{value.name}_inner")
    # Through a name of nobody's first: an exporter may have called one input what another is to be called.
    for index, value in enumerate(ends):
        value.name = f"__end_{index}"
    for value, name in zip(ends, [*inputs, *outputs], strict=True):
        value.name = name
    unused = [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]
    for value in unused:
        graph.inputs.remove(value)
    return [str(value.name) for value in unused]


def _separate_outputs(graph: "ir.Graph") -> None:
    import onnx_ir as ir

    seen: set[int] = set()
    for index, value in enumerate(graph.outputs):
        own = value.producer() is not None and id(value) not in seen
        seen.add(id(value))
        if own:
            continue
        node = ir.node("Identity", [value])
        result = node.outputs[0]
        result.shape, result.type = value.shape, value.type
        graph.append(node)
        graph.outputs[index] = result


def set_name(graph: "ir.Graph", value: "ir.Value", name: str) -> None:
    """Renames a value of the main graph; weights are also listed by name."""
    if value.name is not None and graph.initializers.get(value.name) is value:
        graph.initializers.pop(value.name)
        value.name = name
        graph.initializers[name] = value
    else:
        value.name = name
