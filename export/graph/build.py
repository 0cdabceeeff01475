"""Writes new nodes into a graph: unique names, the anchor's place in the order, the anchor's metadata."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

Attribute = int | float | str | Sequence[int]

_WRITTEN = "attnproof.written"
"""Marks a value whose name was made up here; the names of the file's author say what the fused graph is checked at."""


class Builder:
    """Inserts nodes before an anchor node and names them after it."""

    def __init__(self, anchor: ir.Node, prefix: str) -> None:
        graph = anchor.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("the anchor node must be inside a graph")
        self._anchor = anchor
        self._graph = graph
        self._prefix = prefix
        self._count = 0

    def __call__(
        self,
        op: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """Inserts one standard operator with one output and returns that."""
        return self.node(op, inputs, attributes, dtypes=(dtype,), shapes=(shape,)).outputs[0]

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute],
        *,
        dtypes: Sequence[ir.DataType | None] = (None,),
        shapes: Sequence[ir.Shape | None] = (None,),
        name: str | None = None,
        domain: str = "",
    ) -> ir.Node:
        """Inserts one operator; an output whose type is None is left out, unless it is the only one."""
        self._count += 1
        base = name or f"{self._prefix}/{op}_{self._count}"
        outputs = [
            ir.Value(
                name=f"{base}_output_{i}" if dtypes[i] is not None or len(dtypes) == 1 else "",
                type=None if dtype is None else ir.TensorType(dtype),
                shape=shape,
            )
            for i, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=True))
        ]
        node = ir.Node(
            domain,
            op,
            inputs,
            ir.convenience.convert_attributes(attributes),
            outputs=outputs,
            name=base,
            metadata_props=dict(self._anchor.metadata_props),
        )
        self._graph.insert_before(self._anchor, node)
        for value in outputs:
            value.meta[_WRITTEN] = True
        return node

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        """Inserts the same operator on other inputs; its outputs keep their element types, shapes are not known."""
        self._count += 1
        base = f"{self._prefix}/{node.op_type}_{self._count}"
        outputs = [
            ir.Value(name=f"{base}_output_{i}" if v.name else "", type=v.type) for i, v in enumerate(node.outputs)
        ]
        copied = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            overload=node.overload,
            outputs=outputs,
            name=base,
            metadata_props=dict(node.metadata_props),
        )
        self._graph.insert_before(self._anchor, copied)
        for value in outputs:
            value.meta[_WRITTEN] = True
        return copied

    def constant(self, data: np.ndarray) -> ir.Value:
        """Returns a Constant node's output holding `data`."""
        self._count += 1
        name = f"{self._prefix}/Constant_{self._count}"
        tensor = ir.tensor(data, name=f"{name}_output_0")
        output = ir.Value(
            name=f"{name}_output_0", type=ir.TensorType(tensor.dtype), shape=ir.Shape(data.shape), const_value=tensor
        )
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[output], name=name)
        self._graph.insert_before(self._anchor, node)
        return output

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """Returns a scalar constant of an element type."""
        return self.constant(np.asarray(value, dtype=dtype.numpy()))

    def axes(self, *axes: int) -> ir.Value:
        """Returns a constant int64 vector."""
        return self.constant(np.asarray(axes, dtype=np.int64))


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Lets `new` take the place of `old`: its uses, its name, and what was noted about it."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    new.name, new.doc_string = name, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta[_WRITTEN] = old.meta.get(_WRITTEN, False)


def bypass(result: ir.Value, source: ir.Value) -> None:
    """Lets `source` be read instead of `result`, which is equal to it; of two names the author's is kept."""
    result.replace_all_uses_with(source)
    if source.meta.get(_WRITTEN) and not result.meta.get(_WRITTEN):
        name, result.name = result.name, f"{result.name}/bypassed"
        source.name = name
        source.meta[_WRITTEN] = False
