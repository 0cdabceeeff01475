"""Gives a mask the op's four axes [B, H, S, T]: of fewer, by axes of 1; of more, by merging batch and heads."""

from math import prod

import onnx_ir as ir

from export.fuse.axes import Block, size_source
from export.fuse.contract import Agreement
from export.graph.build import Builder
from export.graph.values import Dim, dims, rank


def four_axes(build: Builder, value: ir.Value, block: Block, agreed: Agreement) -> ir.Value:
    """Returns `value`, which broadcasts over the scores in the home frame, with the axes [B, H, S, T]."""
    length, lead = rank(value), agreed.lead
    if length is None:
        return value
    if len(lead) > 2:
        return _merged(build, value, block, agreed)
    if length == 4:
        return value
    axes = (1,) if length == 3 and len(lead) == 1 else tuple(range(4 - length))
    shape = list(dims(value) or ())
    for axis in axes:
        shape.insert(axis, 1)
    placed = ir.Shape(shape) if len(shape) == 4 else None
    return build("Unsqueeze", value, build.axes(*axes), dtype=value.dtype, shape=placed)


def frame_of(block: Block, agreed: Agreement) -> tuple[Dim | None, ...]:
    """Returns the dimensions [B, H, S, T] of the scores as the op has them; None for a product that has no name."""
    groups = (agreed.lead[: agreed.split], agreed.lead[agreed.split :])
    merged = (1 if not group else group[0] if len(group) == 1 else _number(group) for group in groups)
    return (*merged, *block.scores.layout.frame[-2:])


def _number(sizes: tuple[Dim, ...]) -> int | None:
    return prod(size for size in sizes if isinstance(size, int)) if all(isinstance(s, int) for s in sizes) else None


def _merged(build: Builder, value: ir.Value, block: Block, agreed: Agreement) -> ir.Value:
    """An axis of 1 stays one where all it is merged with are; else what is merged is written out."""
    lead, shape = agreed.lead, dims(value)
    if shape is None:
        raise TypeError("the contract knows the shape of a mask whose axes are merged")
    missing = len(lead) + 2 - len(shape)
    if missing:
        shape = (1,) * missing + shape
        value = build("Unsqueeze", value, build.axes(*range(missing)), dtype=value.dtype, shape=ir.Shape(shape))
    groups = (range(agreed.split), range(agreed.split, len(lead)))
    full = {axis for group in groups if any(shape[a] != 1 for a in group) for axis in group}
    if any(shape[axis] != lead[axis] for axis in full):
        sizes = [lead_size(build, block, agreed, axis) if axis in full else 1 for axis in range(len(lead))]
        shape = (*(lead[axis] if axis in full else 1 for axis in range(len(lead))), *shape[-2:])
        value = build("Expand", value, vector(build, *sizes, 1, 1), dtype=value.dtype, shape=ir.Shape(shape))
    return merge(build, value, agreed.split)


def merge(build: Builder, value: ir.Value, split: int) -> ir.Value:
    """Merges the first `split` axes of a tensor, and those between them and the last two."""
    shape = dims(value)
    if shape is None:
        raise TypeError("the contract knows the shapes of what it merges")
    parts: list[int | ir.Value] = []
    for group in (range(split), range(split, len(shape) - 2)):
        number = _number(tuple(shape[axis] for axis in group))
        parts.append(_product(build, value, group) if number is None else number)
    rest = build("Shape", value, dtype=ir.DataType.INT64, start=len(shape) - 2)
    return build("Reshape", value, vector(build, *parts, rest), dtype=value.dtype)


def vector(build: Builder, *parts: int | ir.Value) -> ir.Value:
    """Returns a shape operand of numbers and vectors, in order."""
    joined: list[ir.Value] = []
    numbers: list[int] = []
    for part in (*parts, None):
        if isinstance(part, int):
            numbers.append(part)
            continue
        if numbers:
            joined.append(build.axes(*numbers))
            numbers = []
        if part is not None:
            joined.append(part)
    return joined[0] if len(joined) == 1 else build("Concat", *joined, dtype=ir.DataType.INT64, axis=0)


def _product(build: Builder, value: ir.Value, group: range) -> ir.Value:
    parts = [build("Shape", value, dtype=ir.DataType.INT64, start=axis, end=axis + 1) for axis in group]
    product = parts[0]
    for part in parts[1:]:
        product = build("Mul", product, part, dtype=ir.DataType.INT64)
    return product


def lead_size(build: Builder, block: Block, agreed: Agreement, axis: int) -> int | ir.Value:
    """Returns the size of a leading axis of the home frame, a number or a vector of one."""
    size = agreed.lead[axis]
    if isinstance(size, int):
        return size
    source = size_source(block, agreed.home, axis)
    if source is None:
        raise TypeError("the contract knows where the sizes of the home frame can be read")
    value, place = source
    if place < 0:
        return build("Slice", value, build.axes(axis), build.axes(axis + 1), dtype=ir.DataType.INT64)
    return build("Shape", value, dtype=ir.DataType.INT64, start=place, end=place + 1)
