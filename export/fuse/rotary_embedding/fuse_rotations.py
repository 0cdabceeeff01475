"""Writes `ai.onnx::RotaryEmbedding` for a rotation that was read: caches [B, S, D/2], x [B, H, S, D] or [B, S, D]."""

from collections.abc import Container
from dataclasses import dataclass

import onnx_ir as ir

from export.fuse.rotary_embedding.lanes import last_axis, slice_of_last
from export.fuse.rotary_embedding.rotation import Rotation, read_rotation
from export.fuse.rotary_embedding.tables import Tables
from export.graph.build import Attribute, Builder, take_place
from export.graph.values import Dim, attribute, broadcast, dim, dims, rank, uniform


@dataclass(frozen=True)
class Rotated:
    """A RotaryEmbedding that was written, and the tensor it replaced the maker of."""

    node: ir.Node
    result: ir.Value


def fuse_rotations(graph: ir.Graph, refused: Container[str] = ()) -> list[Rotated]:
    """Replaces every rotation that can be read by one op, in place; returns what was written.

    Args:
        graph: The graph.
        refused: Names of ops not to write, because they were found wrong before.
    """
    known: dict[tuple[ir.Value, str], ir.Value] = {}
    caches: dict[tuple[ir.Value, str], ir.Value] = {}
    done = []
    for node in list(graph):
        rotation = read_rotation(node)
        if rotation is not None:
            written = None if _name(rotation) in refused else _write(rotation, known, caches)
            if written is not None:
                done.append(written)
    if done:
        graph.sort()
    return done


def _name(rotation: Rotation) -> str:
    node = rotation.result.producer()
    return f"{(node.name if node is not None else None) or rotation.result.name}/RotaryEmbedding"


def _write(
    rotation: Rotation,
    known: dict[tuple[ir.Value, str], ir.Value],
    caches: dict[tuple[ir.Value, str], ir.Value],
) -> Rotated | None:
    node = rotation.result.producer()
    shape = dims(rotation.x)
    if node is None or shape is None or not isinstance(shape[-1], int) or rotation.x.dtype is None:
        return None
    build = Builder(node, f"{node.name or rotation.result.name}/rope")
    cos, sin = (_table(build, rotation, factors, known) for factors in (rotation.cos, rotation.sin))
    if cos is None or sin is None:
        return None
    axis = _head_axis(shape, cos, sin)
    if axis is None:
        return None
    if rotation.sign < 0:
        sin = build("Neg", sin, dtype=sin.dtype, shape=sin.shape)
    x, result, width = _whole_x(rotation)
    cos, sin = (_cache(build, table, rotation.x, shape, axis, caches) for table in (cos, sin))
    attributes: dict[str, Attribute] = {}
    if rotation.pairing == "interleaved":
        attributes["interleaved"] = 1
    if dim(x, -1) != width:
        attributes["rotary_embedding_dim"] = width
    if len(shape) == 3:
        attributes["num_heads"] = 1
    if axis == 2:
        x = build("Transpose", x, dtype=x.dtype, perm=(0, 2, 1, 3))
    written = build.node(
        "RotaryEmbedding",
        [x, cos, sin],
        attributes,
        dtypes=(x.dtype,),
        name=_name(rotation),
    )
    output = written.outputs[0]
    if axis == 2:
        output = build("Transpose", output, dtype=x.dtype, perm=(0, 2, 1, 3))
    output.shape = result.shape
    take_place(result, output)
    return Rotated(written, output)


def _table(
    build: Builder, rotation: Rotation, factors: tuple[ir.Value, ...], known: dict[tuple[ir.Value, str], ir.Value]
) -> ir.Value | None:
    """Returns the product of a table's factors, half as wide as the channels."""
    tables = Tables(rotation.pairing, build, known)
    total: ir.Value | None = None
    for factor in sorted(factors, key=lambda v: -(rank(v) or 0)):
        part = factor if rotation.narrow else tables.narrow(factor)
        if part is None or dims(part) is None:
            return None
        if total is None:
            total = part
        elif uniform(part) != 1.0:
            shape = broadcast(dims(total) or (), dims(part) or ())
            if shape is None:
                return None
            total = build("Mul", total, part, dtype=total.dtype, shape=ir.Shape(shape))
    if total is None or total.dtype != rotation.x.dtype:
        return None
    half = dim(rotation.x, -1)
    return total if isinstance(half, int) and dim(total, -1) == half // 2 else None


def _head_axis(shape: tuple[Dim, ...], cos: ir.Value, sin: ir.Value) -> int | None:
    """Returns the axis of x that the tables lack: 1 for [B, H, S, D], 2 for [B, S, H, D], 0 where x has no heads."""
    found = []
    for table in (cos, sin):
        have = dims(table) or ()
        if len(have) > len(shape) or len(shape) not in (3, 4):
            return None
        padded = (1,) * (len(shape) - len(have)) + have
        if len(shape) == 3:
            found.append(0)
        elif padded[1] == 1 and padded[2] != 1:
            found.append(1)
        elif padded[2] == 1 and padded[1] != 1:
            found.append(2)
        elif padded[1] == 1:
            found.append(1)
        else:
            return None
    return found[0] if found[0] == found[1] else None


def _cache(
    build: Builder,
    table: ir.Value,
    x: ir.Value,
    shape: tuple[Dim, ...],
    axis: int,
    caches: dict[tuple[ir.Value, str], ir.Value],
) -> ir.Value:
    """Returns a table as [B, S, D/2], every batch row written out (the op does not broadcast)."""
    rows = 2 if axis == 1 else 1
    key = (table, f"{shape[0]}|{shape[rows]}|{axis}")
    if key in caches:
        return caches[key]
    length = rank(table) or 0
    value = table
    if length == 4 or (length == 3 and axis == 2):
        value = build("Squeeze", value, build.axes(axis - (4 - length)), dtype=table.dtype)
        length -= 1
    if length < 3:
        value = build("Unsqueeze", value, build.axes(*range(3 - length)), dtype=table.dtype)
    found = dims(table) or ()
    wide = (1,) * (len(shape) - len(found)) + found
    if wide[0] != shape[0] or wide[rows] != shape[rows]:
        batch_size = build("Shape", x, dtype=ir.DataType.INT64, start=0, end=1)
        steps = build("Shape", x, dtype=ir.DataType.INT64, start=rows, end=rows + 1)
        target = build("Concat", batch_size, steps, build.axes(1), dtype=ir.DataType.INT64, axis=0)
        value = build("Expand", value, target, dtype=table.dtype)
    value.shape = ir.Shape((shape[0], shape[rows], wide[-1]))
    caches[key] = value
    return value


def _whole_x(rotation: Rotation) -> tuple[ir.Value, ir.Value, int]:
    """Returns (x, result, rotary width); where the channels after the rotated ones are concatenated, the whole of x."""
    width = dim(rotation.x, -1)
    if not isinstance(width, int):
        raise TypeError("a rotation's width is known")
    piece = slice_of_last(rotation.x)
    users = [node for node, _ in rotation.result.uses()]
    if (
        piece is not None
        and piece[1] == 0
        and piece[3] == 1
        and len(users) == 1
        and not rotation.result.is_graph_output()
    ):
        concat = users[0]
        if concat.op_type == "Concat" and len(concat.inputs) == 2 and last_axis(concat, attribute(concat, "axis", 0)):
            rest = slice_of_last(concat.inputs[1])
            whole = dim(piece[0], -1)
            if concat.inputs[0] is rotation.result and rest == (piece[0], width, whole, 1):
                return piece[0], concat.outputs[0], width
    return rotation.x, rotation.result, width
