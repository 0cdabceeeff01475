"""A graph that gives any of its tensors, a few at a time: each run computes only what the wanted ones need.

Every tensor of a large model at once would not fit. So tensors are asked for in batches whose arrays fit a limit, each
from a graph cut down to their ancestors, with nothing else for the runtime to keep.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from engines import dimension
from engines.ort_runner import OrtRunner
from export.errors import ToolkitError
from export.graph.values import dims
from export.lower import for_ort_check

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray]

BYTES_PER_ELEMENT = 184
"""What one element costs while it is judged: float64, four runs of it, and the temporaries of reach and comparison."""

LIMIT = 2 << 30
"""Bytes that the arrays of one batch may take."""

_LOWERED = ("Attention", "RotaryEmbedding")


class Tensors:
    """The named tensors of a graph.

    Args:
        model: The graph; not changed.
        weights: The folder of its external weights, where they stay in their file.
    """

    def __init__(self, model: ir.Model, weights: Path | None = None) -> None:
        self.model = model
        self._weights = weights
        self.values: dict[str, ir.Value] = {str(v.name): v for node in model.graph for v in node.outputs if v.name}
        self.outputs = tuple(str(v.name) for v in model.graph.outputs)

    def cut(self, names: Sequence[str]) -> ir.Model:
        """Returns the graph that ends in these tensors; it takes the same inputs."""
        model = self.model
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        graph = ir.convenience.extract(model.graph, inputs=inputs, outputs=list(names))
        functions = list(model.clone().functions.values()) if model.functions else []
        return ir.Model(graph, ir_version=model.ir_version, functions=functions)

    def runner(self, names: Sequence[str]) -> OrtRunner:
        """Returns a session that gives these tensors, its graph as it stands.

        Raises:
            UsageError: ONNX Runtime's CPU provider cannot run the graph.
        """
        model = self.cut(names)
        if any(n.op_type in _LOWERED and n.domain in ("", "ai.onnx") for n in model.graph.all_nodes()):
            model = for_ort_check(model)  # ONNX Runtime reads some standard masks wrongly
        content = ir.to_proto(model).SerializeToString()
        return OrtRunner(content, optimization="disable", data=self._weights)

    def elements(self, name: str, feeds: "Mapping[str, np.ndarray]") -> int | None:
        """Returns how many elements a tensor has for these inputs; None where the graph does not say."""
        shape = dims(self.values[name]) if name in self.values else None
        if shape is None:
            return None
        known: dict[str, int] = {}
        for value in self.model.graph.inputs:
            given = feeds.get(str(value.name))
            for size, dim in zip(() if given is None else given.shape, dims(value) or (), strict=False):
                if isinstance(dim, str):
                    known[dim] = size
        count = 1
        for dim in shape:
            if isinstance(dim, str) and not set(dimension.names(dim)) <= known.keys():
                return None
            try:
                count *= dimension.value(dim, known)
            except ToolkitError:
                return None
        return count

    def batches(
        self, names: Sequence[str], feeds: "Mapping[str, np.ndarray]", limit: int = LIMIT
    ) -> Iterator[tuple[str, ...]]:
        """Yields the names in order, as many at a time as fit the limit; one of unknown or larger size comes alone."""
        batch: list[str] = []
        held = 0
        for name in names:
            count = self.elements(name, feeds)
            cost = limit if count is None else count * BYTES_PER_ELEMENT
            if batch and held + cost > limit:
                yield tuple(batch)
                batch, held = [], 0
            batch.append(name)
            held += cost
        if batch:
            yield tuple(batch)
