"""Decides whether a read block is one ONNX Attention: its shapes and element types, unified; it fails closed."""

from dataclasses import dataclass

import onnx_ir as ir

from export.fuse.scores import Operand, Scores, Stage
from export.fuse.shown import Shown, shown
from export.fuse.weights import Weights
from export.graph.values import Dim, Refusal, dim, dims, label, made_by, rank


@dataclass(frozen=True)
class Block:
    """One softmax attention as it was read."""

    softmax: ir.Node
    scores: Scores
    weights: Weights


@dataclass(frozen=True)
class Agreement:
    """What all tensors of a block agree on.

    Attributes:
        lead: Batch and query heads of the fused op; at most one of them is not a number.
        kv_heads: Heads of K and V.
        head_size: Channels a head of Q and K.
        dtype: Element type of Q, K, V and the output.
        softmax_dtype: Element type the softmax was computed in, where it differs from `dtype`.
        shown: The tensor inside the block that is read elsewhere too, or None.
    """

    lead: tuple[Dim, Dim]
    kv_heads: Dim
    head_size: Dim
    dtype: ir.DataType
    softmax_dtype: ir.DataType | None
    shown: Shown | None = None


def operand_dims(operand: Operand) -> tuple[Dim, ...]:
    """Returns the dimensions of an operand as the attention uses it.

    Raises:
        Refusal: They are not known.
    """
    found = dims(operand.value)
    if found is None or len(found) < 2:
        raise Refusal("K201", f"The shape of '{operand.value.name}' is not known, so its heads cannot be told.")
    return (*found[:-2], found[-1], found[-2]) if operand.swapped else found


def agree(block: Block) -> Agreement:
    """Returns what the block's tensors agree on.

    Raises:
        Refusal: Something does not fit one Attention op; the sentence says what.
    """
    _check_axis(block.softmax)
    _check_place(block)
    query, key_t = operand_dims(block.scores.query), operand_dims(block.scores.key_t)
    value = operand_dims(block.weights.value)
    frame = block.scores.frame
    weights = _weights_frame(block)
    if weights[-2] != query[-2]:
        raise Refusal("K202", f"The weights reach V as {list(weights)} but Q gives {query[-2]} query rows.")
    product = dims(block.scores.nodes[0].outputs[0]) or ()
    if query[:-2] != product[:-2]:
        raise Refusal("K207", f"Q is broadcast over K's {list(key_t[:-2])} in {label(block.scores.nodes[0])}.")
    lead = _lead(frame if frame[-2] == query[-2] else weights)
    _check_lead(lead, query, key_t, value)
    kv_heads = _kv_heads(block, query, key_t, value, weights, lead)
    dtype, softmax_dtype = _types(block)
    for stage in block.scores.stages:
        _check_stage(stage, block)
    inside = shown(block.softmax, block.scores, block.weights)
    if inside is not None:
        _check_shown(block, inside, dtype, frame[-2] == query[-2])
    return Agreement(lead, kv_heads, query[-1], dtype, softmax_dtype, inside)


def _check_shown(block: Block, inside: Shown, dtype: ir.DataType, whole: bool) -> None:
    """The op gives [B, H, S, T] in its own type."""
    if not whole:
        raise Refusal("K204", f"{label(block.softmax)} shows '{inside.value.name}' with its queries split.")
    if inside.mode != 3 and block.scores.query.value.dtype != dtype:
        raise Refusal(
            "K204", f"{label(block.softmax)} shows '{inside.value.name}' more precise than {dtype.name}, the op's type."
        )


def _weights_frame(block: Block) -> tuple[Dim, ...]:
    """The weights' dimensions at the product with V: the scores' own unless they were reshaped in between."""
    layouts = [link for link in block.weights.links if link.kind == "layout" and link.node.op_type != "Transpose"]
    if not layouts:
        return block.scores.frame
    found = dims(layouts[-1].result)
    if found is None:
        raise Refusal("K201", f"The shape of the weights at {label(block.weights.product)} is not known.")
    return found


def _check_axis(softmax: ir.Node) -> None:
    axis = softmax.attributes.get("axis")
    length = rank(softmax.outputs[0])
    if axis is not None and axis.as_int() not in (-1, None if length is None else length - 1):
        raise Refusal("K203", f"{label(softmax)} normalises over axis {axis.as_int()}, not over the keys (the last).")


def _lead(frame: tuple[Dim, ...]) -> tuple[Dim, Dim]:
    """Batch and heads: of [B, H, S, T] as they are, of [B, S, T] one head, of [S, T] one of both."""
    if len(frame) == 4:
        lead = (frame[0], frame[1])
    elif len(frame) == 3:
        lead = (frame[0], 1)
    elif len(frame) == 2:
        lead = (1, 1)
    else:
        raise Refusal("K206", f"Scores of shape {list(frame)} have more axes than batch, heads, queries and keys.")
    return lead


def _check_lead(lead: tuple[Dim, Dim], *operands: tuple[Dim, ...]) -> None:
    """Operands of four axes have the fused op's batch and heads already; merged ones are split by a known number."""
    for shape in operands:
        if len(shape) == 4 and (shape[0] != lead[0] or shape[1] not in (lead[1], 1)):
            raise Refusal("K207", f"Scores of {list(lead)} are not laid out as their operand {list(shape[:2])}.")
        if len(shape) == 3 and not any(isinstance(d, int) for d in lead):
            raise Refusal("K201", f"Q, K or V has merged heads, and neither batch nor heads of {list(lead)} is known.")


def _kv_heads(
    block: Block,
    query: tuple[Dim, ...],
    key_t: tuple[Dim, ...],
    value: tuple[Dim, ...],
    weights: tuple[Dim, ...],
    lead: tuple[Dim, Dim],
) -> Dim:
    """K and V have Q's batch and heads, or both have one head for all (multi-query)."""
    if key_t[:-2] == query[:-2] and value[:-2] == weights[:-2]:
        return lead[1]
    four = len(query) == len(key_t) == len(value) == len(weights) == 4
    if four and key_t[:2] == value[:2] == (query[0], 1):
        return 1
    raise Refusal(
        "K207",
        f"Batch and heads differ between Q {list(query[:-2])}, K {list(key_t[:-2])} and V {list(value[:-2])} "
        f"at {label(block.softmax)}.",
    )


def _types(block: Block) -> tuple[ir.DataType, ir.DataType | None]:
    """The op computes in the narrowest of Q's and V's types; the other must be a widened copy of that type."""
    query, key = block.scores.query.value.dtype, block.scores.key_t.value.dtype
    value = block.weights.value.value.dtype
    softmax = block.softmax.inputs[0].dtype if block.softmax.inputs[0] is not None else None
    if query is None or value is None or key != query:
        raise Refusal("K205", f"Q, K and V at {label(block.softmax)} have types {query}, {key} and {value}.")
    added = [stage.value.dtype for stage in block.scores.stages if stage.value is not None]
    if ir.DataType.DOUBLE in (query, value, *added):
        raise Refusal(
            "K219", f"{label(block.softmax)} computes in double; Attention's scale is a float, and so are its kernels."
        )
    narrow, wide = sorted((query, value), key=lambda dtype: dtype.itemsize)
    operands = [block.scores.query.value, block.scores.key_t.value, block.weights.value.value]
    widened = narrow.itemsize < wide.itemsize and all(v.dtype == narrow or _uncast(v, narrow) for v in operands)
    if query == value or widened:
        return narrow, softmax if softmax is not None and softmax != narrow else None
    raise Refusal("K205", f"Q and K are {query.name} but V is {value.name} at {label(block.softmax)}.")


def _uncast(value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
    """Returns the tensor of type `dtype` that `value` is a widened copy of, or None."""
    cast = made_by(value, "Cast")
    inner = cast.inputs[0] if cast is not None else None
    return inner if inner is not None and inner.dtype == dtype else None


def uncast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns `value` in type `dtype`: itself, or what it was widened from (`agree` has checked that there is one)."""
    return value if value.dtype == dtype else (_uncast(value, dtype) or value)


def _check_stage(stage: Stage, block: Block) -> None:
    """A mask may have fewer axes than the scores, or 1 where they have more, but must not widen them."""
    if stage.value is None:
        return
    tensor, frame = stage.value, stage.frame
    found = rank(tensor)
    if found is None or (frame != block.scores.frame and dims(tensor) is None):
        raise Refusal("K201", f"The shape of the mask '{stage.value.name}' is not known.")
    if found > len(frame):
        raise Refusal("K208", f"The mask '{stage.value.name}' has {found} axes, more than the scores.")
    for at in range(1, found + 1):
        have, room = dim(tensor, -at), frame[-at]
        if have != room and room == 1:
            raise Refusal("K209", f"The mask '{stage.value.name}' widens the scores from 1 to {have}.")


def _check_place(block: Block) -> None:
    """Tensors may come from the graph around a body; the steps themselves stand in one."""
    for node in (*block.scores.nodes, *block.weights.nodes):
        if node.graph is not block.softmax.graph:
            raise Refusal(
                "K211", f"{label(node)} and {label(block.softmax)} stand in different graphs, one a body of the other."
            )
