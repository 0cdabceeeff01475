"""Writes one `ai.onnx::Attention` for a block that was read and agreed.

`softmax(scale * (a @ b) + mask) @ v == Attention(a, swap_last_two(b), v, mask, scale)` always holds, so K's own
transpose is never searched for: the inverse one is written here and `tidy` lets the two cancel.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.fuse.contract import Agreement, Block, operand_dims, uncast
from export.fuse.masks.write import write_mask
from export.fuse.scores import Operand
from export.graph.build import Attribute, Builder, take_place
from export.graph.values import Dim, dims, made_by, permutation, rank, uniform


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


def emit(block: Block, agreed: Agreement, masked_rows: str) -> Emitted:
    """Inserts the Attention before the product with V and lets it take that product's place.

    Args:
        block: The block as read.
        agreed: Its unified shapes and types.
        masked_rows: "keep" the meaning of a row that sees no key, or make it "zero".
    """
    product = block.weights.product
    build = Builder(product, f"{block.softmax.name or product.name or product.outputs[0].name}/attention")
    q_operand, q_factor = _unscaled(build, block.scores.query)
    k_operand, k_factor = _unscaled(build, block.scores.key_t.swap())
    query = _place(build, q_operand, agreed.dtype, agreed.lead)
    key = _place(build, k_operand, agreed.dtype, (agreed.lead[0], agreed.kv_heads))
    value = _place(build, Operand(block.weights.value), agreed.dtype, (agreed.lead[0], agreed.kv_heads))
    mask = write_mask(build, block, agreed, key, masked_rows)
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
    wanted = block.weights.wanted
    if wanted is not None:
        attributes["qk_matmul_output_mode"] = 3
    node = build.node(
        "Attention",
        [query, key, value, *([mask.value] if mask.value is not None else [])],
        attributes,
        dtypes=(agreed.dtype,) if wanted is None else (agreed.dtype, None, None, agreed.dtype),
        shapes=(None,) if wanted is None else (None, None, None, wanted.shape),
        name=_free_name(block),
    )
    output, old = node.outputs[0], product.outputs[0]
    if old.dtype is not None and old.dtype != agreed.dtype:
        output = build("Cast", output, dtype=old.dtype, to=int(old.dtype))
    take_place(old, _leave(build, output, old))
    if wanted is not None:
        weights = node.outputs[3]
        if wanted.dtype is not None and wanted.dtype != agreed.dtype:
            weights = build("Cast", weights, dtype=wanted.dtype, to=int(wanted.dtype))
        take_place(wanted, weights)
        if isinstance(node.graph, ir.Graph):
            node.graph.sort()  # what reads the weights may stand before the product whose place the op took
    return Emitted(node, scale, mask.kind, mask.masked_rows)


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
