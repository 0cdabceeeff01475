"""Writes RoPE tables from their expressions: each once, half as wide, and not at all where the graph has it already."""

from math import prod

import numpy as np
import onnx_ir as ir

from export.fuse.rotary_embedding.channels import Channels, lead
from export.fuse.rotary_embedding.tables import AROUND, Made, Product, Recipe, Tables
from export.graph.build import Attribute, Builder
from export.graph.values import attribute, broadcast, dims, integers, permutation, rank


def write(tables: Tables, build: Builder, product: Product) -> ir.Value | None:
    """Returns a product as a tensor [.., D/2] or [.., 1]; None where none of its factors is a tensor."""
    return _value(tables, build, tables.one(product)) if product.parts else None


def _value(tables: Tables, build: Builder, found: int) -> ir.Value:
    if found not in tables.known:
        tables.known[found] = _written(tables, build, tables.recipes[found])
    return tables.known[found]


def _written(tables: Tables, build: Builder, recipe: Recipe) -> ir.Value:
    if isinstance(recipe, Channels):
        return taken(build, recipe)
    if isinstance(recipe, np.ndarray):
        return build.constant(recipe)
    if isinstance(recipe, Product):
        return _multiplied(tables, build, recipe)
    if isinstance(recipe, tuple):
        parts = [_value(tables, build, part) for part in recipe]
        shape = dims(parts[0])
        width = sum(w for p in parts if isinstance(w := (dims(p) or (None,))[-1], int))
        whole = None if shape is None else ir.Shape([*shape[:-1], width])
        return build("Concat", *parts, dtype=parts[0].dtype, shape=whole, axis=-1)
    return _repeated(tables, build, recipe)


def _multiplied(tables: Tables, build: Builder, product: Product) -> ir.Value:
    over = [_value(tables, build, p) for p in product.parts if p > 0]
    under = [_value(tables, build, -p) for p in product.parts if p < 0]
    dtype = (over or under)[0].dtype
    over.sort(key=lambda v: -(rank(v) or 0))
    total = over[0] if over else None
    for value in over[1:]:
        total = build("Mul", total, value, dtype=dtype, shape=_broadcast(total, value))
    for value in under:
        shape = _broadcast(total, value)
        if total is None:
            total = build("Reciprocal", value, dtype=dtype, shape=value.shape)
        else:
            total = build("Div", total, value, dtype=dtype, shape=shape)
    if product.number == -1.0 and total is not None:
        return build("Neg", total, dtype=dtype, shape=total.shape)
    if product.number != 1.0 and total is not None and dtype is not None:
        return build("Mul", total, build.number(product.number, dtype), dtype=dtype, shape=total.shape)
    if total is None:
        raise TypeError("a product that is written has a tensor among its factors")
    return total


def _repeated(tables: Tables, build: Builder, made: Made) -> ir.Value:
    """Writes a node again, on the channels that are wanted."""
    node, out = made.node, made.node.outputs[0]
    inputs = [_value(tables, build, i) if isinstance(i, int) else i for i in made.inputs]
    attributes: dict[str, Attribute] = {name: a.value for name, a in node.attributes.items()}
    before = (rank(out) or 0) - made.tail
    if node.op_type in AROUND:
        inputs[1:], attributes = _adapted(build, node, made, before)
    shape = dims(out)
    placed = None if shape is None else ir.Shape([*shape[:before], made.width])
    return build(node.op_type, *inputs, dtype=out.dtype, shape=placed, **attributes)


def _broadcast(one: ir.Value | None, two: ir.Value) -> ir.Shape | None:
    shape = broadcast(dims(one) or (), dims(two) or ())
    return None if shape is None or dims(one) is None else ir.Shape(shape)


def _adapted(
    build: Builder, node: ir.Node, made: Made, after: int
) -> tuple[list[ir.Value | None], dict[str, Attribute]]:
    """Returns the other inputs and the attributes of a node for a source whose channels are one axis, and fewer."""
    length, out = rank(node.inputs[0]) or 0, rank(node.outputs[0]) or 0
    rest = list(node.inputs[1:])
    attributes: dict[str, Attribute] = {name: a.value for name, a in node.attributes.items()}
    if node.op_type == "Gather":
        attributes["axis"] = attribute(node, "axis", 0) % length
    elif node.op_type == "Transpose":
        perm = permutation(node) or ()
        attributes["perm"] = (*perm[:after], after)
    elif node.op_type == "Slice":
        axes = integers(node.inputs[3]) or ()
        rest[2] = build.axes(*(axis % length for axis in axes))
    elif node.op_type in ("Unsqueeze", "Squeeze"):
        wide = out if node.op_type == "Unsqueeze" else length
        axes = integers(node.inputs[1]) or ()
        rest[0] = build.axes(*(axis % wide for axis in axes))
    elif node.op_type in ("Expand", "Reshape"):  # they say the channels in a shape
        int64 = ir.DataType.INT64
        first = build("Slice", rest[0], build.axes(0), build.axes(after), build.axes(0), dtype=int64)
        rest[0] = build("Concat", first, build.axes(made.width), dtype=int64, shape=ir.Shape([after + 1]), axis=0)
    return rest, attributes


def taken(build: Builder, channels: Channels) -> ir.Value:
    """Writes some channels of a value as a tensor [.., count]."""
    value, pick = channels.value, channels.pick
    own, before = channels.sizes or (), lead(channels.value, channels.tail) or ()
    if channels.tail != 1:
        shape = build.axes(*[0] * len(before), prod(own))
        value = build("Reshape", value, shape, dtype=value.dtype, shape=ir.Shape([*before, prod(own)]))
    if pick == tuple(range(prod(own))):
        return value
    shape_after = ir.Shape([*before, len(pick)])
    stride = pick[1] - pick[0] if len(pick) > 1 else 1
    if stride > 0 and pick == tuple(range(pick[0], pick[-1] + 1, stride)):
        bounds = (build.axes(x) for x in (pick[0], pick[-1] + 1, len(before), stride))
        return build("Slice", value, *bounds, dtype=value.dtype, shape=shape_after)
    return build("Gather", value, build.axes(*pick), dtype=value.dtype, shape=shape_after, axis=len(before))
