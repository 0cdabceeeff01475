"""How a mutant is made: a copy of a model, and the means to change it in front of its attention nodes."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Edit:
    """A copy of a model and the means to change it in front of its attention nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self._count = 0

    def nodes(self, op: str) -> list[onnx.NodeProto]:
        return [n for n in self.graph.node if n.op_type == op and n.domain in ("", "ai.onnx")]

    def constant(self, value: np.ndarray) -> str:
        self._count += 1
        name = f"mutant.constant.{self._count}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def before(self, node: onnx.NodeProto, op: str, inputs: list[str], **attributes: object) -> str:
        self._count += 1
        name = f"mutant.{op}.{self._count}"
        at = next(i for i, n in enumerate(self.graph.node) if n is node or n.output[:] == node.output[:])
        self.graph.node.insert(at, helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def producer(self, name: str) -> onnx.NodeProto | None:
        return next((n for n in self.graph.node if name in n.output), None)

    def shape(self, name: str) -> list[int | None]:
        """The inferred shape of a value, None for what is not known."""
        if not hasattr(self, "_shapes"):
            inferred = onnx.shape_inference.infer_shapes(self.model)
            values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
            self._shapes = {v.name: v.type.tensor_type for v in values}
            self._initial = {t.name: list(t.dims) for t in inferred.graph.initializer}
        if name in self._initial:
            return list(self._initial[name])
        kind = self._shapes.get(name)
        return [] if kind is None else [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]

    def element(self, name: str) -> int:
        self.shape(name)
        if name in self._shapes:
            return int(self._shapes[name].elem_type)
        return next(int(t.data_type) for t in self.graph.initializer if t.name == name)


def get(node: onnx.NodeProto, name: str, default: float | int | None = None) -> float | int | None:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def put(node: onnx.NodeProto, name: str, value: float | int) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def mask_of(node: onnx.NodeProto) -> str | None:
    return node.input[3] if len(node.input) > 3 and node.input[3] else None


def each(model: onnx.ModelProto, change: Callable[[Edit, onnx.NodeProto], bool]) -> onnx.ModelProto | None:
    """Applies a change to every attention; None if it applied to none."""
    edit = Edit(model)
    attentions = edit.nodes("Attention")
    return edit.model if any([change(edit, node) for node in attentions]) else None


def head_counts(edit: Edit, node: onnx.NodeProto) -> tuple[int, int] | None:
    """(query heads, key/value heads)."""
    if get(node, "q_num_heads"):
        return int(get(node, "q_num_heads") or 0), int(get(node, "kv_num_heads") or 0)
    q, k = edit.shape(node.input[0]), edit.shape(node.input[1])
    if len(q) == 4 and len(k) == 4 and q[1] and k[1]:
        return q[1], k[1]
    return None


def head_size(edit: Edit, node: onnx.NodeProto) -> int | None:
    heads = head_counts(edit, node)
    last = (edit.shape(node.input[0]) or [None])[-1]
    if heads is None or last is None:
        return None
    return last // heads[0] if get(node, "q_num_heads") else last


def gather_heads(edit: Edit, node: onnx.NodeProto, slot: int, heads: list[int]) -> None:
    name = node.input[slot]
    index = edit.constant(np.array(heads))
    if not get(node, "q_num_heads"):
        node.input[slot] = edit.before(node, "Gather", [name, index], axis=1)
        return
    count = int(get(node, "q_num_heads" if slot == 0 else "kv_num_heads") or 0)
    split = edit.before(node, "Reshape", [name, edit.constant(np.array([0, 0, count, -1]))])
    chosen = edit.before(node, "Gather", [split, index], axis=2)
    node.input[slot] = edit.before(node, "Reshape", [chosen, edit.constant(np.array([0, 0, -1]))])
