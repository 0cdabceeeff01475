"""Wrong graphs made from right fused ones: each is a mistake that a fuser, an exporter or a runtime has made.

A mutant takes a model that holds ai.onnx::Attention (4-D, or 3-D with head counts) and RotaryEmbedding nodes, and
returns the wrong one, or None where it does not apply (no mask to invert, no heads to exchange).
"""

from collections.abc import Callable

import numpy as np
import onnx
from mutant_edit import Edit, each, gather_heads, get, head_counts, head_size, mask_of, put
from onnx import helper

Mutant = Callable[[onnx.ModelProto], "onnx.ModelProto | None"]


def scale_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        size = head_size(edit, node)
        scale = get(node, "scale", None if size is None else size**-0.5)
        put(node, "scale", 1.0)
        return scale is not None and abs(float(scale) - 1) > 1e-6

    return each(model, change)


def scale_twice(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        size = head_size(edit, node)
        scale = get(node, "scale", None if size is None else size**-0.5)
        if scale is None or abs(float(scale) - 1) < 1e-6:
            return False
        put(node, "scale", float(scale) ** 2)
        return True

    return each(model, change)


def softcap_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        had = bool(get(node, "softcap", 0.0))
        put(node, "softcap", 0.0)
        return had

    return each(model, change)


def causal_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        had = bool(get(node, "is_causal", 0))
        put(node, "is_causal", 0)
        return had

    return each(model, change)


def causal_off_by_one(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Query i sees keys 0 .. i+1."""

    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        if not get(node, "is_causal", 0):
            return False
        ranges = []
        for slot in (0, 1):  # [B, H, S, D] and [B, S, H*D] both have the length second to last
            size = edit.before(node, "Shape", [node.input[slot]], start=-2, end=-1)
            length = edit.before(node, "Squeeze", [size])
            ranges.append(edit.before(node, "Range", [edit.constant(np.array(0)), length, edit.constant(np.array(1))]))
        rows = edit.before(node, "Unsqueeze", [ranges[0], edit.constant(np.array([1]))])
        rows = edit.before(node, "Add", [rows, edit.constant(np.array(1))])
        keep = edit.before(node, "LessOrEqual", [ranges[1], rows])
        mask = mask_of(node)
        if mask is None:
            node.input.append(keep) if len(node.input) == 3 else node.input.__setitem__(3, keep)
        elif edit.element(mask) == onnx.TensorProto.BOOL:
            node.input[3] = edit.before(node, "And", [mask, keep])
        else:
            dtype = helper.tensor_dtype_to_np_dtype(edit.element(mask))
            node.input[3] = edit.before(node, "Where", [keep, mask, edit.constant(np.array(-np.inf, dtype))])
        put(node, "is_causal", 0)
        return True

    return each(model, change)


def mask_inverted(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        mask = mask_of(node)
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

    return each(model, change)


def mask_dropped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        if mask_of(node) is None:
            return False
        node.input[3] = ""
        while node.input and not node.input[-1]:
            node.input.pop()
        return True

    return each(model, change)


def mask_off_by_one(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Every key has its neighbour's mask."""

    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        mask = mask_of(node)
        if mask is None:
            return False
        first, last, end, axis = (edit.constant(np.array([i])) for i in (1, -1, 2**31, -1))
        rest = edit.before(node, "Slice", [mask, first, end, axis])
        tail = edit.before(node, "Slice", [mask, last, end, axis])
        node.input[3] = edit.before(node, "Concat", [rest, tail], axis=-1)
        return True

    return each(model, change)


def mask_on_wrong_axis(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        mask = mask_of(node)
        rank = 0 if mask is None else len(edit.shape(mask))
        if rank < 2:
            return False
        node.input[3] = edit.before(node, "Transpose", [mask], perm=[*range(rank - 2), rank - 1, rank - 2])
        return True

    return each(model, change)


def mask_of_first_row(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Every batch row has the first one's mask."""

    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        mask = mask_of(node)
        if mask is None or len(edit.shape(mask)) != 4 or edit.shape(mask)[0] == 1:
            return False
        zero, one = edit.constant(np.array([0])), edit.constant(np.array([1]))
        first = edit.before(node, "Slice", [mask, zero, one, zero])
        node.input[3] = edit.before(node, "Expand", [first, edit.before(node, "Shape", [mask])])
        return True

    return each(model, change)


def key_and_value_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        if edit.shape(node.input[1])[-1:] != edit.shape(node.input[2])[-1:]:
            return False
        node.input[1], node.input[2] = node.input[2], node.input[1]
        return True

    return each(model, change)


def kv_heads_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        heads = head_counts(edit, node)
        if heads is None or heads[1] < 2:
            return False
        for slot in (1, 2):
            gather_heads(edit, node, slot, list(range(heads[1]))[::-1])
        return True

    return each(model, change)


def value_heads_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        heads = head_counts(edit, node)
        if heads is None or heads[1] < 2:
            return False
        gather_heads(edit, node, 2, list(range(heads[1]))[::-1])
        return True

    return each(model, change)


def gqa_order_wrong(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Query head h reads head h % Hkv rather than h // (H / Hkv)."""

    def change(edit: Edit, node: onnx.NodeProto) -> bool:
        heads = head_counts(edit, node)
        if heads is None or not 1 < heads[1] < heads[0]:
            return False
        for slot in (1, 2):
            gather_heads(edit, node, slot, [h % heads[1] for h in range(heads[0])])
        if get(node, "kv_num_heads"):
            put(node, "kv_num_heads", heads[0])
        return True

    return each(model, change)


def rope_pairing_changed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    edit = Edit(model)
    ropes = edit.nodes("RotaryEmbedding")
    for node in ropes:
        put(node, "interleaved", 1 - int(get(node, "interleaved", 0) or 0))
    return edit.model if ropes else None


def cos_and_sin_swapped(model: onnx.ModelProto) -> onnx.ModelProto | None:
    edit = Edit(model)
    ropes = edit.nodes("RotaryEmbedding")
    for node in ropes:
        node.input[1], node.input[2] = node.input[2], node.input[1]
    return edit.model if ropes else None


def _rope_missing(model: onnx.ModelProto, slot: int) -> onnx.ModelProto | None:
    edit = Edit(model)
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
