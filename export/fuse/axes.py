"""Settles the axes of a block: in which frame the op works, which of them are batch and heads, who broadcasts."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.fuse.scores import Operand, Scores
from export.fuse.weights import Weights
from export.graph.values import Dim, Refusal, dims, label, made_by, permutation


@dataclass(frozen=True)
class Block:
    """One softmax attention as it was read.

    Attributes:
        softmax: Its Softmax.
        scores: What that reads.
        weights: Where what it gives goes.
        order: Where the nodes of its graph stood: none depends on one that stood after it.
    """

    softmax: ir.Node
    scores: Scores
    weights: Weights
    order: Mapping[ir.Node, int]


def operand_dims(operand: Operand) -> tuple[Dim, ...]:
    """Returns the dimensions of an operand as the attention uses it.

    Raises:
        Refusal: They are not known.
    """
    found = dims(operand.value)
    if found is None or len(found) < 2:
        raise Refusal("K201", f"The shape of '{operand.value.name}' is not known, so its heads cannot be told.")
    return (*found[:-2], found[-1], found[-2]) if operand.swapped else found


def home_of(block: Block, rows: Dim) -> int:
    """The frame to work in: behind the last mask, one of batch and heads if there is one, else the one V is met in."""
    frames = block.weights.layout.frames
    stages = [s for s in block.scores.stages if s.value is not None or s.kind == "sink"]
    used = [*(stage.layout for stage in stages), *(factor.layout for factor in block.scores.factors)]
    first = max((len(layout.frames) - 1 for layout in used), default=0)
    fitting = [at for at in range(first, len(frames)) if len(frames[at]) == 4 and frames[at][-2] == rows]
    return fitting[-1] if fitting else len(frames) - 1


def led(block: Block, shape: tuple[Dim, ...], frame: tuple[Dim, ...], lead: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Returns the axes before the last two that an operand, met in `frame`, has in the home frame; 1 is broadcast."""
    have, met = shape[:-2], frame[:-2]
    if met != lead:  # reshaped on the way: batch and heads were one axis
        if have != lead and (have != met or len(have) != 1 or len(lead) != 2):
            raise Refusal("K207", f"Scores of {list(lead)} are not laid out as their operand {list(have)}.")
        return lead
    have = (1,) * (len(lead) - len(have)) + have
    if len(have) > len(lead) or any(d not in (1, room) for d, room in zip(have, lead, strict=True)):
        raise Refusal("K207", f"Scores of {list(lead)} are not laid out as their operand {list(have)}.")
    return have


def shared(lead: tuple[Dim, ...], key: tuple[Dim, ...], value: tuple[Dim, ...]) -> tuple[int, tuple[Dim, ...]]:
    """Returns how many axes are the batch, and K's and V's axes: innermost ones of 1 in both are heads that share."""
    split = max(len(lead) - 1, min(len(lead), 1))
    while (
        split > 1
        and isinstance(lead[split - 1], int)
        and key[split:] == value[split:] == (1,) * len(key[split:]) != lead[split:]
    ):
        split -= 1
    at = split
    while at < len(lead) and key[at] == value[at] == lead[at]:
        at += 1
    narrow = key[at:] == value[at:] == (1,) * (len(lead) - at)
    return split, (*lead[:at], *(1,) * (len(lead) - at)) if narrow else lead


def size_source(block: Block, home: int, axis: int) -> tuple[ir.Value, int] | None:
    """Returns where the size of a leading axis of the home frame can be read: a tensor and its axis, or a shape.

    Args:
        block: The block.
        home: Its home frame.
        axis: The axis, from the left.

    Returns:
        (tensor, axis) or (shape operand of the home frame, -1); None where there is neither.
    """
    layout = block.weights.layout
    frame = layout.frames[home]
    for operand, at in ((block.scores.query, 0), (block.scores.key_t, 0), (block.weights.value, -1)):
        shape = operand_dims(operand)
        if layout.frames[at][:-2] == frame[:-2]:
            place = axis - len(frame) + len(shape)
            if place >= 0 and shape[place] == frame[axis]:
                return _before_transposes(operand.value, place)
    target = layout.targets[home - 1] if home else None
    return None if target is None else (target, -1)


def _before_transposes(value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """Returns where an axis was before transposes: a size is read there, so that nothing keeps them alive."""
    while (turned := made_by(value, "Transpose")) is not None:
        source, perm = turned.inputs[0], permutation(turned)
        if source is None or perm is None:
            break
        value, axis = source, perm[axis]
    return value, axis


def check_sizes(block: Block, home: int, shapes: list[tuple[Dim, ...]]) -> None:
    """What has to be written as a shape can be: at most one axis may be left to a Reshape."""
    lead = block.weights.layout.frames[home][:-2]
    symbols = [axis for axis, size in enumerate(lead) if not isinstance(size, int)]
    if len(symbols) > 1 and any(size_source(block, home, axis) is None for axis in symbols):
        raise Refusal("K201", f"Q, K or V has merged heads, and neither batch nor heads of {list(lead)} is known.")
    if any(
        size != room and not isinstance(room, int) and size_source(block, home, axis) is None
        for shape in shapes
        for axis, (size, room) in enumerate(zip(shape, lead, strict=True))
    ):
        raise Refusal("K207", f"No operand of {label(block.softmax)} has the batch and heads {list(lead)}.")
