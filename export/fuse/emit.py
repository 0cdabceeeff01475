"""Writes one `ai.onnx::Attention` for a block that was read and agreed.

`softmax(scale * (a @ b) + mask) @ v == Attention(a, swap_last_two(b), v, mask, scale)` always holds, so K's own
transpose is never searched for: the inverse one is written here and `tidy` lets the two cancel.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from export.fuse.axes import Block, operand_dims
from export.fuse.contract import Agreement, bare, uncast
from export.fuse.masks.columns import with_rows
from export.fuse.masks.frames import place
from export.fuse.masks.groups import four_axes, lead_size, merge, vector
from export.fuse.masks.prove import Prover
from export.fuse.masks.write import write_mask
from export.fuse.rows import Read
from export.fuse.scores import Operand
from export.fuse.shown import Shown
from export.fuse.trail import trail
from export.fuse.weights import Link
from export.graph.build import Attribute, Builder, take_place
from export.graph.values import Dim, Refusal, dims, label, rank, uniform


@dataclass(frozen=True)
class Emitted:
    """The node that was written.

    Attributes:
        node: The Attention.
        scale: Its scale.
        mask: "none", "bool", "float" or "bool+float".
        masked_rows: What a row without any key gives now and, where it differs, gave before.
        trail: What each node of the block was read as.
    """

    node: ir.Node
    scale: float
    mask: str
    masked_rows: str
    trail: tuple[Read, ...]


def emit(block: Block, agreed: Agreement, masked_rows: str, prover: Prover) -> Emitted:
    """Inserts the Attention before the product with V and lets it take that product's place.

    Args:
        block: The block as read.
        agreed: Its unified shapes and types.
        masked_rows: "keep" the meaning of a row that sees no key, or make it "zero".
        prover: Proves the masks of the model.
    """
    product = block.weights.product
    build = Builder(product, f"{_name(block)}/attention")
    read = trail(block)  # before anything is replaced
    q_bare, q_factor = bare(block.scores.query.value)
    k_bare, k_factor = bare(block.scores.key_t.value)
    met = block.weights.layout.frames[0]
    query = _place(build, replace(block.scores.query, value=q_bare), met, block, agreed, agreed.lead)
    key = _place(build, replace(block.scores.key_t, value=k_bare).swap(), met, block, agreed, agreed.kv_lead)
    value = _place(
        build, _per_key(build, block, agreed.dtype), block.weights.layout.frame, block, agreed, agreed.kv_lead
    )
    query, key = _factored(build, query, key, block, agreed)
    empty = "keep" if block.weights.divided else masked_rows  # 0 / 0 otherwise
    mask = write_mask(build, block, agreed, key, empty, prover)
    for sink in (stage for stage in block.scores.stages if stage.kind == "sink"):
        key = with_rows(build, key, sink.width, behind=sink.keep_when)
        if block.weights.dropped != (0, 0):
            value = with_rows(build, value, sink.width, behind=sink.keep_when)
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
        name=f"{_name(block)}/Attention",
    )
    output, old = node.outputs[0], product.outputs[0]
    if old.dtype is not None and old.dtype != agreed.dtype:
        output = build("Cast", output, dtype=old.dtype, to=int(old.dtype))
    take_place(old, _behind(build, block, agreed, output, old))
    if shown is not None:
        take_place(shown.value, _inside(build, shown, node.outputs[3], block, agreed))
    return Emitted(node, scale, mask.kind, mask.masked_rows, read)


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


def _behind(build: Builder, block: Block, agreed: Agreement, output: ir.Value, old: ir.Value) -> ir.Value:
    """Returns the op's output as the product with V was: its shape, and after what was done to whole rows."""
    weights = block.weights
    if not weights.turned and not weights.behind:
        return _leave(build, output, old, block, agreed)
    upright = ir.Value(name=old.name, type=old.type, shape=_swapped(old.shape) if weights.turned else old.shape)
    output = _leave(build, output, upright, block, agreed)
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
    return None if shape is None or len(agreed.lead) != 2 else ir.Shape((*agreed.lead, *shape[-2:]))


def _inside(build: Builder, shown: Shown, inside: ir.Value, block: Block, agreed: Agreement) -> ir.Value:
    """Returns the op's inside as the tensor whose place it takes."""
    dtype = agreed.dtype
    if shown.factor != 1.0:
        inside = build("Mul", inside, build.number(shown.factor, dtype), dtype=dtype, shape=inside.shape)
    if shown.value.dtype is not None and shown.value.dtype != dtype:
        inside = build("Cast", inside, dtype=shown.value.dtype, shape=inside.shape, to=int(shown.value.dtype))
    return _leave(build, inside, shown.value, block, agreed)


def _name(block: Block) -> str:
    """Returns the name of the block's Softmax, or, where several blocks share it, of this one's product."""
    node = block.weights.product if block.weights.others else block.softmax
    return (not block.weights.others and node.name) or node.outputs[0].name or "softmax"


def _place(
    build: Builder, operand: Operand, met: tuple[Dim, ...], block: Block, agreed: Agreement, lead: tuple[Dim, ...]
) -> ir.Value:
    """Returns an operand as [batch, heads, rows, channels] in the agreed type, broadcast to `lead`."""
    value, shape, dtype = uncast(operand.value, agreed.dtype), operand_dims(operand), agreed.dtype
    if operand.swapped:
        axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        value = build("Transpose", value, dtype=dtype, shape=ir.Shape(shape), perm=axes)
    have, tail = shape[:-2], shape[-2:]
    placed = ir.Shape((*lead, *tail))
    if have == lead:
        pass
    elif met[:-2] != agreed.lead and have != lead[:1]:  # batch and heads in one axis
        symbols = [axis for axis, size in enumerate(lead) if not isinstance(size, int)]
        free = symbols[:1] if len(symbols) < 2 else []
        sizes = [-1 if axis in free else lead_size(build, block, agreed, axis) for axis in range(len(lead))]
        rest = build("Shape", value, dtype=ir.DataType.INT64, start=1)
        value = build("Reshape", value, vector(build, *sizes, rest), dtype=dtype, shape=placed)
    else:
        new = range(len(lead) - len(have)) if met[:-2] == agreed.lead else range(1, 2)  # [B, S, D] has one head
        if new:
            have = (*have[: new.start], *(1 for _ in new), *have[new.start :])
            value = build("Unsqueeze", value, build.axes(*new), dtype=dtype, shape=ir.Shape((*have, *tail)))
        if have != lead:
            sizes = [
                1 if size == room else lead_size(build, block, agreed, axis)
                for axis, (size, room) in enumerate(zip(have, lead, strict=True))
            ]
            value = build("Expand", value, vector(build, *sizes, 1, 1), dtype=dtype, shape=placed)
    if len(lead) > 2:
        value = merge(build, value, agreed.split)
    elif len(lead) < 2:
        axes_value = build.axes(*((0, 1) if not lead else (1,)))
        value = build("Unsqueeze", value, axes_value, dtype=dtype, shape=ir.Shape((*(lead or (1,)), 1, *tail)))
    return value


def _factored(
    build: Builder, query: ir.Value, key: ir.Value, block: Block, agreed: Agreement
) -> tuple[ir.Value, ir.Value]:
    """Multiplies the rows of Q, or of K, by the factors on their product."""
    dtype = agreed.dtype
    for factor in block.scores.factors:
        tensor = place(build, factor, block, agreed.home)
        if tensor.dtype != dtype:
            tensor = build("Cast", tensor, dtype=dtype, shape=tensor.shape, to=int(dtype))
        if factor.of_keys or len(agreed.lead) != 2:
            tensor = four_axes(build, tensor, block, agreed)
        op = "Div" if factor.divides else "Mul"
        if factor.of_keys:
            tensor = build("Transpose", tensor, dtype=dtype, perm=(0, 1, 3, 2))
            key = build(op, key, tensor, dtype=dtype, shape=key.shape)
        else:
            query = build(op, query, tensor, dtype=dtype, shape=query.shape)
    return query, key


def _leave(build: Builder, output: ir.Value, old: ir.Value, block: Block, agreed: Agreement) -> ir.Value:
    """Returns the op's [B, H, S, .] output in the shape that what it replaces had."""
    length = rank(old)
    if length is None or (length == 4 and len(agreed.lead) == 2):
        output.shape = old.shape
        return output
    rest = build("Shape", output, dtype=ir.DataType.INT64, start=2)
    if length == 2:
        return build("Reshape", output, rest, dtype=old.dtype, shape=old.shape)
    sizes = [-1] if length == 3 else [lead_size(build, block, agreed, axis) for axis in range(len(agreed.lead))]
    return build("Reshape", output, vector(build, *sizes, rest), dtype=old.dtype, shape=old.shape)
