"""Writes one `ai.onnx::Attention` for a block that was read and agreed.

`softmax(scale * (a @ b) + mask) @ v == Attention(a, swap_last_two(b), v, mask, scale)` always holds, so K's own
transpose is never searched for: the inverse one is written here and `tidy` lets the two cancel.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from export.fuse.contract import Agreement, Block, operand_dims, uncast
from export.fuse.masks.prove import Prover
from export.fuse.masks.write import write_mask
from export.fuse.scores import Operand
from export.fuse.shown import Shown
from export.fuse.weights import Link, Weights
from export.graph.build import Attribute, Builder, take_place
from export.graph.values import Dim, Refusal, dims, label, made_by, permutation, rank, uniform


@dataclass(frozen=True)
class Emitted:
    """The node that was written.

    Attributes:
        node: The Attention.
        scale: Its scale.
        mask: "none", "bool", "float" or "bool+float".
        masked_rows: What a row without any key gives now and, where it differs, gave before.
    """

    node: ir.Node
    scale: float
    mask: str
    masked_rows: str


def emit(block: Block, agreed: Agreement, masked_rows: str, prover: Prover) -> Emitted:
    """Inserts the Attention before the product with V and lets it take that product's place.

    Args:
        block: The block as read.
        agreed: Its unified shapes and types.
        masked_rows: "keep" the meaning of a row that sees no key, or make it "zero".
        prover: Proves the masks of the model.
    """
    product = block.weights.product
    build = Builder(product, f"{block.softmax.name or product.name or product.outputs[0].name}/attention")
    q_operand, q_factor = _unscaled(build, block.scores.query)
    k_operand, k_factor = _unscaled(build, block.scores.key_t.swap())
    query = _place(build, q_operand, agreed.dtype, agreed.lead)
    key = _place(build, k_operand, agreed.dtype, (agreed.lead[0], agreed.kv_heads))
    value = _place(build, _per_key(build, block, agreed.dtype), agreed.dtype, (agreed.lead[0], agreed.kv_heads))
    mask = write_mask(build, block, agreed, key, masked_rows, prover)
    if mask.open_rows is not None:
        query = build("Mul", query, mask.open_rows, dtype=agreed.dtype, shape=query.shape)
    scale = block.scores.scale * q_factor * k_factor
    if scale <= 0.0:  # ONNX Runtime takes positive scales only: sign and zero move onto Q
        sign = build.number(-1.0 if scale < 0.0 else 0.0, agreed.dtype)
        query = build("Mul", query, sign, dtype=agreed.dtype, shape=query.shape)
        scale = abs(scale) or 1.0
    attributes: dict[str, Attribute] = {"scale": float(scale)}
    if block.scores.softcap is not None:
        attributes["softcap"] = float(block.scores.softcap)
    if agreed.softmax_dtype is not None:
        attributes["softmax_precision"] = int(agreed.softmax_dtype)
    shown = agreed.shown
    if shown is not None:
        attributes["qk_matmul_output_mode"] = shown.mode
        if shown.mode != 3 and mask.open_rows is not None:
            raise Refusal(
                "K204",
                f"{label(block.softmax)} shows '{shown.value.name}', but needs other scores for rows without keys.",
            )
    node = build.node(
        "Attention",
        [query, key, value, *([mask.value] if mask.value is not None else [])],
        attributes,
        dtypes=(agreed.dtype,) if shown is None else (agreed.dtype, None, None, agreed.dtype),
        shapes=(None,) if shown is None else (None, None, None, _whole(shown, agreed)),
        name=_free_name(block),
    )
    output, old = node.outputs[0], product.outputs[0]
    if old.dtype is not None and old.dtype != agreed.dtype:
        output = build("Cast", output, dtype=old.dtype, to=int(old.dtype))
    take_place(old, _behind(build, block.weights, output, old))
    if shown is not None:
        take_place(shown.value, _inside(build, shown, node.outputs[3], agreed.dtype))
        if isinstance(node.graph, ir.Graph):
            node.graph.sort()  # what reads the weights may stand before the product whose place the op took
    return Emitted(node, scale, mask.kind, mask.masked_rows)


def _per_key(build: Builder, block: Block, dtype: ir.DataType) -> Operand:
    """Returns V after what was done to the weights of whole keys: `(P * c) @ V == P @ (c^T * V)`."""
    weights = block.weights
    value, swapped = uncast(weights.value.value, dtype), weights.value.swapped
    for link in weights.columns:
        if link.kind == "factor" and value is not weights.value.value:
            raise Refusal(
                "K307",
                f"{label(link.node)} multiplies weights of {label(block.softmax)} by numbers that "
                f"{dtype.name.lower()}, the type of Q, may not hold.",
            )
        column = link.value
        if column is None:
            continue
        length = rank(column) or 0
        if not swapped and length == 1:
            column = build("Unsqueeze", column, build.axes(-1), dtype=column.dtype)
        elif not swapped:
            axes = (*range(length - 2), length - 1, length - 2)
            column = build("Transpose", column, dtype=column.dtype, perm=axes)
        value = _applied(build, link, value, column)
    return replace(weights.value, value=value)


def _applied(build: Builder, link: Link, value: ir.Value, by: ir.Value) -> ir.Value:
    """Does to a tensor what a link does to the weights, with `by` as its condition or factor."""
    dtype = value.dtype
    if dtype is None:
        raise TypeError("the types of a block's tensors were agreed on")
    if link.kind == "zero":
        zero = build.number(0.0, dtype)
        chosen = (zero, value) if link.when else (value, zero)
        return build("Where", by, *chosen, dtype=dtype, shape=value.shape)
    if by.dtype != dtype:
        by = build("Cast", by, dtype=dtype, to=int(dtype))
    return build("Mul" if link.when else "Div", value, by, dtype=dtype, shape=value.shape)


def _behind(build: Builder, weights: Weights, output: ir.Value, old: ir.Value) -> ir.Value:
    """Returns the op's output as the product with V was: its shape, and after what was done to whole rows."""
    if not weights.turned and not weights.behind:
        return _leave(build, output, old)
    upright = ir.Value(name=old.name, type=old.type, shape=_swapped(old.shape) if weights.turned else old.shape)
    output = _leave(build, output, upright)
    for link in weights.behind:
        number = None if link.value is None or link.kind == "zero" else uniform(link.value)
        by = link.value if number is None or output.dtype is None else build.number(number, output.dtype)
        if by is not None:
            output = _applied(build, link, output, by)
    if not weights.turned:
        return output
    length = rank(old) or 4
    axes = (*range(length - 2), length - 1, length - 2)
    return build("Transpose", output, dtype=output.dtype, shape=old.shape, perm=axes)


def _swapped(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*shape[:-2], shape[-1], shape[-2]])


def _whole(shown: Shown, agreed: Agreement) -> ir.Shape | None:
    """Returns the shape [B, H, S, T] of the op's inside."""
    shape = dims(shown.value)
    return None if shape is None else ir.Shape((*agreed.lead, *shape[-2:]))


def _inside(build: Builder, shown: Shown, inside: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns the op's inside as the tensor whose place it takes."""
    if shown.factor != 1.0:
        inside = build("Mul", inside, build.number(shown.factor, dtype), dtype=dtype, shape=inside.shape)
    if shown.value.dtype is not None and shown.value.dtype != dtype:
        inside = build("Cast", inside, dtype=shown.value.dtype, shape=inside.shape, to=int(shown.value.dtype))
    return _leave(build, inside, shown.value)


def _free_name(block: Block) -> str:
    name = block.softmax.name or block.softmax.outputs[0].name or "softmax"
    return f"{name}/Attention"


def _unscaled(build: Builder, operand: Operand) -> tuple[Operand, float]:
    """Takes constant factors off an operand, through a Transpose, so that they join the op's scale."""
    value, factor = operand.value, 1.0
    while True:
        scaled = made_by(value, "Mul", "Div")
        if scaled is not None:
            left, right = scaled.inputs
            number = uniform(right)
            if left is not None and number is not None and number > 0.0 and dims(left) == dims(value) is not None:
                factor *= number if scaled.op_type == "Mul" else 1.0 / number
                value = left
                continue
            number = uniform(left) if scaled.op_type == "Mul" else None
            if right is not None and number is not None and number > 0.0 and dims(right) == dims(value) is not None:
                factor *= number
                value = right
                continue
        turned = made_by(value, "Transpose")
        inner = turned.inputs[0] if turned is not None else None
        if turned is not None and inner is not None and made_by(inner, "Mul", "Div") is not None:
            rest, inner_factor = _unscaled(build, Operand(inner))
            perm = permutation(turned)
            if inner_factor != 1.0 and perm is not None:
                moved = build("Transpose", rest.value, dtype=value.dtype, shape=value.shape, perm=perm)
                return Operand(moved, operand.swapped, operand.factor), factor * inner_factor
        return Operand(value, operand.swapped, operand.factor), factor


def _place(build: Builder, operand: Operand, dtype: ir.DataType, lead: tuple[Dim, Dim]) -> ir.Value:
    """Returns an operand as [batch, heads, rows, channels] in the agreed type."""
    value, shape = operand.value, operand_dims(operand)
    value = uncast(value, dtype)
    if operand.factor is not None:
        factor = operand.factor
        if factor.dtype != dtype:
            factor = build("Cast", factor, dtype=dtype, to=int(dtype))
        value = build("Mul", value, factor, dtype=dtype, shape=value.shape)
    if operand.swapped:
        axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        value = build("Transpose", value, dtype=dtype, shape=ir.Shape(shape), perm=axes)
    return _frame(build, value, shape, lead, dtype)


def _frame(
    build: Builder, value: ir.Value, shape: tuple[Dim, ...], lead: tuple[Dim, Dim], dtype: ir.DataType
) -> ir.Value:
    if len(shape) == 4:
        return value
    placed = ir.Shape((*lead, *shape[-2:]))
    if lead[1] == 1 and (len(shape) == 2 or shape[0] == lead[0]):
        return build("Unsqueeze", value, build.axes(*((0, 1) if len(shape) == 2 else (1,))), dtype=dtype, shape=placed)
    numbers = [d if isinstance(d, int) else -1 for d in lead]
    rest = build("Shape", value, dtype=ir.DataType.INT64, start=len(shape) - 2)
    target = build("Concat", build.axes(*numbers), rest, dtype=ir.DataType.INT64, axis=0)
    return build("Reshape", value, target, dtype=dtype, shape=placed)


def _leave(build: Builder, output: ir.Value, old: ir.Value) -> ir.Value:
    """Returns the op's [B, H, S, Dv] output in the shape the product with V had."""
    length = rank(old)
    if length == 4 or length is None:
        output.shape = old.shape
        return output
    rest = build("Shape", output, dtype=ir.DataType.INT64, start=2)
    if length == 2:
        return build("Reshape", output, rest, dtype=old.dtype, shape=old.shape)
    target = build("Concat", build.constant(np.asarray([-1], np.int64)), rest, dtype=ir.DataType.INT64, axis=0)
    return build("Reshape", output, target, dtype=old.dtype, shape=old.shape)
