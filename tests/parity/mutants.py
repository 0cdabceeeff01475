"""Wrong graphs made from right fused ones: each is a mistake that a fuser, an exporter or a runtime has made.

A mutant takes a model that holds ai.onnx::Attention (4-D, or 3-D with head counts) and RotaryEmbedding nodes, and
returns the wrong one, or None where it does not apply (no mask to invert, no heads to exchange).
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Mutant = Callable[[onnx.ModelProto], "onnx.ModelProto | None"]


class _Edit:
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


def _get(node: onnx.NodeProto, name: str, default: float | int | None = None) -> float | int | None:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _set(node: onnx.NodeProto, name: str, value: float | int) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def _mask(node: onnx.NodeProto) -> str | None:
    return node.input[3] if len(node.input) > 3 and node.input[3] else None


def _each(model: onnx.ModelProto, change: Callable[[_Edit, onnx.NodeProto], bool]) -> onnx.ModelProto | None:
    """Applies a change to every attention; None if it applied to none."""
    edit = _Edit(model)
    attentions = edit.nodes("Attention")
    return edit.model if any([change(edit, node) for node in attentions]) else None


def _heads(edit: _Edit, node: onnx.NodeProto) -> tuple[int, int] | None:
    """(query heads, key/value heads)."""
    if _get(node, "q_num_heads"):
        return int(_get(node, "q_num_heads") or 0), int(_get(node, "kv_num_heads") or 0)
    q, k = edit.shape(node.input[0]), edit.shape(node.input[1])
    if len(q) == 4 and len(k) == 4 and q[1] and k[1]:
        return q[1], k[1]
    return None


def _head_size(edit: _Edit, node: onnx.NodeProto) -> int | None:
    heads = _heads(edit, node)
    last = (edit.shape(node.input[0]) or [None])[-1]
    if heads is None or last is None:
        return None
    return last // heads[0] if _get(node, "q_num_heads") else last


def _gather_heads(edit: _Edit, node: onnx.NodeProto, slot: int, heads: list[int]) -> None:
    name = node.input[slot]
    index = edit.constant(np.array(heads))
    if not _get(node, "q_num_heads"):
        node.input[slot] = edit.before(node, "Gather", [name, index], axis=1)
        return
    count = int(_get(node, "q_num_heads" if slot == 0 else "kv_num_heads") or 0)
    split = edit.before(node, "Reshape", [name, edit.constant(np.array([0, 0, count, -1]))])
    chosen = edit.before(node, "Gather", [split, index], axis=2)
    node.input[slot] = edit.before(node, "Reshape", [chosen, edit.constant(np.array([0, 0, -1]))])


def scale_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        size = _head_size(edit, node)
        scale = _get(node, "scale", None if size is None else size**-0.5)
        _set(node, "scale", 1.0)
        return scale is not None and abs(float(scale) - 1) > 1e-6

    return _each(model, change)


def scale_twice(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        size = _head_size(edit, node)
        scale = _get(node, "scale", None if size is None else size**-0.5)
        if scale is None or abs(float(scale) - 1) < 1e-6:
            return False
        _set(node, "scale", float(scale) ** 2)
        return True

    return _each(model, change)


def softcap_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        had = bool(_get(node, "softcap", 0.0))
        _set(node, "softcap", 0.0)
        return had

    return _each(model, change)


def causal_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        had = bool(_get(node, "is_causal", 0))
        _set(node, "is_causal", 0)
        return had

    return _each(model, change)


def causal_off_by_one(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Query i sees keys 0 .. i+1."""

    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        if not _get(node, "is_causal", 0):
            return False
        ranges = []
        for slot in (0, 1):  # [B, H, S, D] and [B, S, H*D] both have the length second to last
            size = edit.before(node, "Shape", [node.input[slot]], start=-2, end=-1)
            length = edit.before(node, "Squeeze", [size])
            ranges.append(edit.before(node, "Range", [edit.constant(np.array(0)), length, edit.constant(np.array(1))]))
        rows = edit.before(node, "Unsqueeze", [ranges[0], edit.constant(np.array([1]))])
        rows = edit.before(node, "Add", [rows, edit.constant(np.array(1))])
        keep = edit.before(node, "LessOrEqual", [ranges[1], rows])
        mask = _mask(node)
        if mask is None:
            node.input.append(keep) if len(node.input) == 3 else node.input.__setitem__(3, keep)
        elif edit.element(mask) == onnx.TensorProto.BOOL:
            node.input[3] = edit.before(node, "And", [mask, keep])
        else:
            dtype = helper.tensor_dtype_to_np_dtype(edit.element(mask))
            node.input[3] = edit.before(node, "Where", [keep, mask, edit.constant(np.array(-np.inf, dtype))])
        _set(node, "is_causal", 0)
        return True

    return _each(model, change)


def mask_inverted(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        mask = _mask(node)
        if mask is None:
            return False
        if edit.element(mask) == onnx.TensorProto.BOOL:
            node.input[3] = edit.before(node, "Not", [mask])
            return True
        dtype = helper.tensor_dtype_to_np_dtype(edit.element(mask))
        low, free, fill = (edit.constant(np.array(x, dtype)) for x in (-1000, 0, -10000))
        hidden = edit.before(node, "Less", [mask, low])
        node.input[3] = edit.before(node, "Where", [hidden, free, fill])
        return True

    return _each(model, change)


def mask_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        if _mask(node) is None:
            return False
        node.input[3] = ""
        while node.input and not node.input[-1]:
            node.input.pop()
        return True

    return _each(model, change)


def mask_off_by_one(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Every key has its neighbour's mask."""

    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        mask = _mask(node)
        if mask is None:
            return False
        first, last, end, axis = (edit.constant(np.array([i])) for i in (1, -1, 2**31, -1))
        rest = edit.before(node, "Slice", [mask, first, end, axis])
        tail = edit.before(node, "Slice", [mask, last, end, axis])
        node.input[3] = edit.before(node, "Concat", [rest, tail], axis=-1)
        return True

    return _each(model, change)


def mask_on_wrong_axis(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        mask = _mask(node)
        rank = 0 if mask is None else len(edit.shape(mask))
        if rank < 2:
            return False
        node.input[3] = edit.before(node, "Transpose", [mask], perm=[*range(rank - 2), rank - 1, rank - 2])
        return True

    return _each(model, change)


def mask_of_first_row(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Every batch row has the first one's mask."""

    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        mask = _mask(node)
        if mask is None or len(edit.shape(mask)) != 4 or edit.shape(mask)[0] == 1:
            return False
        zero, one = edit.constant(np.array([0])), edit.constant(np.array([1]))
        first = edit.before(node, "Slice", [mask, zero, one, zero])
        node.input[3] = edit.before(node, "Expand", [first, edit.before(node, "Shape", [mask])])
        return True

    return _each(model, change)


def key_and_value_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        if edit.shape(node.input[1])[-1:] != edit.shape(node.input[2])[-1:]:
            return False
        node.input[1], node.input[2] = node.input[2], node.input[1]
        return True

    return _each(model, change)


def kv_heads_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        heads = _heads(edit, node)
        if heads is None or heads[1] < 2:
            return False
        for slot in (1, 2):
            _gather_heads(edit, node, slot, list(range(heads[1]))[::-1])
        return True

    return _each(model, change)


def value_heads_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        heads = _heads(edit, node)
        if heads is None or heads[1] < 2:
            return False
        _gather_heads(edit, node, 2, list(range(heads[1]))[::-1])
        return True

    return _each(model, change)


def gqa_order_wrong(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Query head h reads head h % Hkv rather than h // (H / Hkv)."""

    def change(edit: _Edit, node: onnx.NodeProto) -> bool:
        heads = _heads(edit, node)
        if heads is None or not 1 < heads[1] < heads[0]:
            return False
        for slot in (1, 2):
            _gather_heads(edit, node, slot, [h % heads[1] for h in range(heads[0])])
        if _get(node, "kv_num_heads"):
            _set(node, "kv_num_heads", heads[0])
        return True

    return _each(model, change)


def rope_pairing_changed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    edit = _Edit(model)
    ropes = edit.nodes("RotaryEmbedding")
    for node in ropes:
        _set(node, "interleaved", 1 - int(_get(node, "interleaved", 0) or 0))
    return edit.model if ropes else None


def cos_and_sin_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    edit = _Edit(model)
    ropes = edit.nodes("RotaryEmbedding")
    for node in ropes:
        node.input[1], node.input[2] = node.input[2], node.input[1]
    return edit.model if ropes else None


def _rope_missing(model: onnx.ModelProto, slot: int) -> onnx.ModelProto | None:
    edit = _Edit(model)
    found = False
    for attention in edit.nodes("Attention"):
        name = attention.input[slot]
        for _ in range(12):
            node = edit.producer(name)
            if node is None or node.op_type not in _BETWEEN:
                break
            if node.op_type == "RotaryEmbedding":
                for user in edit.graph.node:
                    user.input[:] = [node.input[0] if i == node.output[0] else i for i in user.input]
                found = True
                break
            name = node.input[0]
    return edit.model if found else None


_BETWEEN = {"RotaryEmbedding", "Cast", "Transpose", "Reshape", "Concat", "Identity", "Mul", "Unsqueeze", "Squeeze"}


def rope_missing_on_key(model: onnx.ModelProto) -> onnx.ModelProto | None:
    return _rope_missing(model, 1)


def rope_missing_on_query(model: onnx.ModelProto) -> onnx.ModelProto | None:
    return _rope_missing(model, 0)


MUTANTS: dict[str, Mutant] = {
    f.__name__: f
    for f in (
        scale_dropped,
        scale_twice,
        softcap_dropped,
        causal_dropped,
        causal_off_by_one,
        mask_inverted,
        mask_dropped,
        mask_off_by_one,
        mask_on_wrong_axis,
        mask_of_first_row,
        key_and_value_swapped,
        kv_heads_swapped,
        value_heads_swapped,
        gqa_order_wrong,
        rope_pairing_changed,
        cos_and_sin_swapped,
        rope_missing_on_key,
        rope_missing_on_query,
    )
}


def mutants(model: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """Every mutant that applies to the model, by name."""
    made = {name: mutate(model) for name, mutate in MUTANTS.items()}
    return {name: mutant for name, mutant in made.items() if mutant is not None}
