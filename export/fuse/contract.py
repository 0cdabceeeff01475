"""Decides whether a read block is one ONNX Attention: its shapes and element types, unified; it fails closed."""

from dataclasses import dataclass

import onnx_ir as ir

from export.fuse.axes import Block, check_sizes, home_of, led, operand_dims, shared
from export.fuse.scores import Factor, Stage
from export.fuse.shown import Shown, shown
from export.graph.values import Dim, Refusal, dim, dims, label, made_by, rank, uniform


@dataclass(frozen=True)
class Agreement:
    """What all tensors of a block agree on.

    Attributes:
        home: Which frame of the scores' layout the fused op works in.
        lead: The axes of that frame before queries and keys, outermost first.
        split: How many of them are the batch; the others are heads.
        kv_lead: The same axes as K and V have them: those heads that share K and V are 1.
        dtype: Element type of Q, K, V and the output.
        softmax_dtype: Element type the softmax was computed in, where it differs from `dtype`.
        shown: The tensor inside the block that is read elsewhere too, or None.
    """

    home: int
    lead: tuple[Dim, ...]
    split: int
    kv_lead: tuple[Dim, ...]
    dtype: ir.DataType
    softmax_dtype: ir.DataType | None
    shown: Shown | None = None


def agree(block: Block) -> Agreement:
    """Returns what the block's tensors agree on.

    Raises:
        Refusal: Something does not fit one Attention op; the sentence says what.
    """
    _check_place(block)
    layout, name = block.weights.layout, label(block.softmax)
    query, key_t, value = (operand_dims(o) for o in (block.scores.query, block.scores.key_t, block.weights.value))
    if layout.frame[-2] != query[-2]:
        raise Refusal("K202", f"The weights reach V as {list(layout.frame)} but Q gives {query[-2]} query rows.")
    home = home_of(block, query[-2])
    frame = layout.frames[home]
    lead = frame[:-2]
    shapes = [
        led(block, shape, layout.frames[at], lead)
        for shape, at in ((query, 0), (key_t, 0), (value, len(layout.frames) - 1))
    ]
    split, kv_lead = shared(lead, shapes[1], shapes[2])
    dtype, softmax_dtype = _types(block)
    _check_sink(block, home)
    check_sizes(block, home, shapes)
    for stage in block.scores.stages:
        if stage.value is not None and stage.kind != "sink":
            _check_mask(stage, block, home)
    for factor in block.scores.factors:
        _check_moves(factor, block, home)
        if factor.of_keys and kv_lead != lead and set(lead_of(factor, len(lead))) != {1}:
            raise Refusal("K107", f"The factor '{factor.value.name}' of {name} differs between heads that share K.")
    inside = shown(block.softmax, block.scores, block.weights, block.order)
    if inside is not None:
        _check_shown(block, inside, dtype, lead)
    return Agreement(home, lead, split, kv_lead, dtype, softmax_dtype, inside)


def _check_shown(block: Block, inside: Shown, dtype: ir.DataType, lead: tuple[Dim, ...]) -> None:
    """The op gives [B, H, S, T] in its own type."""
    shape = dims(inside.value)
    if shape is None or (len(shape) > 3 and shape[:-2] != lead) or shape[-2] != operand_dims(block.scores.query)[-2]:
        raise Refusal("K204", f"{label(block.softmax)} shows '{inside.value.name}', whose axes are not the op's.")
    if inside.mode != 3 and block.scores.query.value.dtype != dtype:
        raise Refusal(
            "K204", f"{label(block.softmax)} shows '{inside.value.name}' more precise than {dtype.name}, the op's type."
        )


def lead_of(factor: Factor | Stage, length: int) -> tuple[Dim, ...]:
    """Returns the axes of a tensor before queries and keys, 1 where it has none."""
    shape = dims(factor.value) or ()
    return (*(1,) * (length + 2 - len(shape)), *shape)[:-2]


def _types(block: Block) -> tuple[ir.DataType, ir.DataType | None]:
    """The op computes in the narrowest of Q's and V's types; the other must be a widened copy of that type."""
    operands = [bare(block.scores.query.value)[0], bare(block.scores.key_t.value)[0], block.weights.value.value]
    query, key, value = (operand.dtype for operand in operands)
    softmax = block.softmax.inputs[0].dtype if block.softmax.inputs[0] is not None else None
    if query is None or value is None or key != query:
        raise Refusal("K205", f"Q, K and V at {label(block.softmax)} have types {query}, {key} and {value}.")
    added = [stage.value.dtype for stage in block.scores.stages if stage.value is not None]
    if ir.DataType.DOUBLE in (query, value, *added):
        raise Refusal(
            "K219", f"{label(block.softmax)} computes in double; Attention's scale is a float, and so are its kernels."
        )
    narrow = min((query, value), key=lambda dtype: dtype.itemsize)
    widened = query.itemsize != value.itemsize and all(o.dtype == narrow or _uncast(o, narrow) for o in operands)
    if query == value or widened:
        return narrow, softmax if softmax is not None and softmax != narrow else None
    raise Refusal(
        "K205",
        f"Q and K are {query.name} but V is {value.name} at {label(block.softmax)}; cast Q and K to V's type before "
        "their product.",
    )


def bare(value: ir.Value) -> tuple[ir.Value, float]:
    """Returns what a tensor is but for positive constant factors, and their product."""
    factor = 1.0
    while (scaled := made_by(value, "Mul", "Div")) is not None:
        left, right = scaled.inputs
        for side, other in ((left, right), (right, left)):
            number = uniform(other) if side is left or scaled.op_type == "Mul" else None
            if side is not None and number is not None and number > 0.0 and dims(side) == dims(value) is not None:
                factor *= number if scaled.op_type == "Mul" else 1.0 / number
                value = side
                break
        else:
            break
    return value, factor


def _uncast(value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
    """Returns the tensor of type `dtype` that `value` is a widened copy of, or None."""
    cast = made_by(value, "Cast")
    inner = cast.inputs[0] if cast is not None else None
    return inner if inner is not None and inner.dtype == dtype else None


def uncast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns `value` in type `dtype`: itself, or what it was widened from (`agree` has checked that there is one)."""
    return value if value.dtype == dtype else (_uncast(value, dtype) or value)


def _check_mask(stage: Stage, block: Block, home: int) -> None:
    """A mask may have fewer axes than the scores, or 1 where they have more, but must not widen them."""
    tensor, frame = stage.value, stage.layout.here
    found = rank(tensor)
    if tensor is None or found is None:
        raise Refusal("K201", f"The shape of a mask at {label(block.softmax)} is not known.")
    moves = len(frame) > 4 or not stage.layout.straight or len(stage.layout.frames) - 1 != home
    if moves and dims(tensor) is None:
        raise Refusal("K201", f"The shape of the mask '{tensor.name}' is not known.")
    if found > len(frame):
        raise Refusal("K208", f"The mask '{tensor.name}' has {found} axes, more than the scores.")
    for at in range(1, found + 1):
        have, room = dim(tensor, -at), frame[-at]
        if have != room and room == 1:
            raise Refusal("K209", f"The mask '{tensor.name}' widens the scores from 1 to {have}.")
    _check_moves(stage, block, home)


def _check_moves(stage: Stage | Factor, block: Block, home: int) -> None:
    """A tensor is reshaped as the scores were after it: by shapes that are given, all axes written out like Q's."""
    layout, shape = block.weights.layout, dims(stage.value) or ()
    if stage.value is None or stage.layout.frame == layout.frames[home] or all(d == 1 for d in shape[:-1]):
        return
    given = layout.targets[home - 1] if home else None
    query = operand_dims(block.scores.query)
    if given is None or None in stage.layout.targets[-1:] or query[:-2] != layout.frames[0][:-2]:
        raise Refusal(
            "K116",
            f"The scores of {label(block.softmax)} are reshaped after '{stage.value.name}' in a way it cannot follow.",
        )


def _check_sink(block: Block, home: int) -> None:
    """Columns beside the keys are dropped after the softmax, or V has rows for them; nothing else may be dropped."""
    sinks = [s for s in block.scores.stages if s.kind == "sink"]
    frame = block.weights.layout.frames[home]
    if any(len(s.layout.frames) - 1 != home for s in sinks) or (sinks and len(frame) > 4):
        raise Refusal("K120", f"The scores of {label(block.softmax)} are reshaped around their sinks.")
    width = (0, sinks[0].width) if sinks and sinks[0].keep_when else (sinks[0].width if sinks else 0, 0)
    if block.weights.dropped not in ((0, 0), width):
        front, back = block.weights.dropped
        raise Refusal(
            "K121",
            f"After {label(block.softmax)} {front} weights in front and {back} behind are cut off, not its sinks.",
        )


def _check_place(block: Block) -> None:
    """Tensors may come from the graph around a body; the steps themselves stand in one."""
    for node in (*block.scores.nodes, *block.weights.nodes):
        if node.graph is not block.softmax.graph:
            raise Refusal(
                "K211", f"{label(node)} and {label(block.softmax)} stand in different graphs, one a body of the other."
            )
