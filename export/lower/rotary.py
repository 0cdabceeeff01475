"""RotaryEmbedding's tables in the batch and the type of what they rotate, as every backend wants them."""

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import dim
from export.lower.call import take_place
from export.lower.step import Step
from export.lower.targets import Target

_INT = ir.DataType.INT64


def lower_rotary(node: ir.Node, row: Target, build: Builder) -> tuple[Step, ...]:
    """Repeats tables (or positions) of batch 1 along the batch, and rotates in the tables' type where it is wider."""
    return (*_batch(node, row, build), *_types(node, row, build))


def _batch(node: ir.Node, row: Target, build: Builder) -> tuple[Step, ...]:
    x = node.inputs[0]
    positions = node.inputs[3] if len(node.inputs) > 3 else None
    indices = (1, 2) if positions is None else (3,)
    short = [i for i in indices if dim(node.inputs[i], 0) == 1]
    if "rotary batch" in row.extras or not short or dim(x, 0) == 1:
        return ()
    count = build("Shape", x, dtype=_INT, shape=ir.Shape([1]), start=0, end=1)
    for index in short:
        table = node.inputs[index]
        if table is None or table.shape is None:
            continue
        target = build("Concat", count, build.axes(*[1] * (len(table.shape) - 1)), dtype=_INT, axis=0)
        shape = ir.Shape([dim(x, 0), *table.shape[1:]])
        node.replace_input_with(index, build("Expand", table, target, dtype=table.dtype, shape=shape))
    what = "tables" if positions is None else "positions"
    why = f"{row.title} wants RotaryEmbedding's {what} for every batch row, not one for all."
    return (Step(node.name or "RotaryEmbedding", "expand rotary batch", why),)


def _types(node: ir.Node, row: Target, build: Builder) -> tuple[Step, ...]:
    x, cos, sin = node.inputs[:3]
    if row.name == "onnx" or x is None or cos is None or sin is None or x.dtype is None or cos.dtype is None:
        return ()
    if x.dtype == cos.dtype == sin.dtype:
        return ()
    wide = x.dtype if x.dtype.bitwidth >= cos.dtype.bitwidth else cos.dtype
    for index, value in enumerate((x, cos, sin)):
        if value.dtype != wide:
            node.replace_input_with(index, build("Cast", value, dtype=wide, shape=value.shape, to=int(wide)))
    if wide != x.dtype:
        old = node.outputs[0]
        rotated = build("RotaryEmbedding", *node.inputs, dtype=wide, shape=old.shape, **_attributes(node))
        take_place(old, build("Cast", rotated, dtype=x.dtype, shape=old.shape, to=int(x.dtype)))
        made = rotated.producer()
        if made is not None and node.graph is not None:
            made.name = node.name
            node.graph.remove(node, safe=True)
    why = f"{row.title} rotates in one type; it is the wider one, as the graph says."
    return (Step(node.name or "RotaryEmbedding", "rotate in one type", why),)


def _attributes(node: ir.Node) -> dict[str, int]:
    return {name: int(attribute.value) for name, attribute in node.attributes.items()}
