"""Writes `ai.onnx::RotaryEmbedding` for a rotation that was read: caches [B, S, D/2], x [B, H, S, D] or [B, S, D]."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType

import onnx_ir as ir

from export.fuse.rotary_embedding.channels import Channels, everything, lead, step
from export.fuse.rotary_embedding.layout import cache, layout_of, turn, turn_back, widen
from export.fuse.rotary_embedding.linear import NotLinearError, Term, terms
from export.fuse.rotary_embedding.rotation import Rotation, may_be_pair, read_rotation
from export.fuse.rotary_embedding.tables import Tables
from export.fuse.rotary_embedding.writing import taken, write
from export.graph.build import Attribute, Builder, take_place
from export.graph.numbers import Numbers
from export.graph.values import Refusal, attribute, dims, label, rank

NONE: Mapping[str, Refusal] = MappingProxyType({})


@dataclass(frozen=True)
class Rotated:
    """A RotaryEmbedding that was written, and the tensor it replaced the maker of."""

    node: ir.Node
    result: ir.Value


@dataclass(frozen=True)
class Rotations:
    """What became of the rotations of a graph: those written, and those that stay, by the node that completes each."""

    written: list[Rotated] = field(default_factory=list)
    kept: dict[ir.Node, Refusal] = field(default_factory=dict)


def fuse_rotations(graph: ir.Graph, refused: Mapping[str, Refusal] = NONE) -> Rotations:
    """Replaces every rotation that can be read by one op, in place; returns what was written and what was not.

    Args:
        graph: The graph.
        refused: Ops not to write, by name, because they were found wrong before.
    """
    tables = Tables(Numbers())
    caches: dict[tuple[object, ...], ir.Value] = {}
    done = Rotations()
    for node in list(graph):
        for part in chain((node,), _pairs(node)):
            try:
                rotation = read_rotation(part, tables)
                if rotation is not None and name_of(rotation) in refused:
                    raise refused[name_of(rotation)]
                if rotation is not None:
                    done.written.append(_write(part, rotation, tables, caches))
            except Refusal as refusal:
                done.kept[node] = refusal
    if done.written:
        graph.sort()
    return done


def _pairs(node: ir.Node) -> Iterator[ir.Node]:
    """Takes out of a Concat of several tensors, one by one, the Concats of two that may be a rotation's channels.

    `Concat(a, b, c)` is `Concat(Concat(a, b), c)`: exporters merge a rotation's own Concat into the next.
    """
    length = rank(node.outputs[0]) if node.op_type == "Concat" and node.domain == "" and len(node.inputs) > 2 else None
    if length is None or attribute(node, "axis", 0) % length != length - 1:
        return
    at = 0
    while at + 1 < len(node.inputs) and len(node.inputs) > 2:
        first, second = node.inputs[at : at + 2]
        if not may_be_pair(first, second) or first is None or second is None:
            at += 1
            continue
        shape = dims(first)
        whole = ir.Shape([*shape[:-1], 2 * shape[-1]]) if shape and isinstance(shape[-1], int) else None
        build = Builder(node, f"{node.name or node.outputs[0].name}/pair_{at}")
        pair = build.node("Concat", [first, second], {"axis": length - 1}, dtypes=(first.dtype,), shapes=(whole,))
        inputs = list(node.inputs)
        _set_inputs(node, [*inputs[:at], pair.outputs[0], *inputs[at + 2 :]])
        yield pair
        if node.inputs[at] is pair.outputs[0]:
            _set_inputs(node, inputs)
            if pair.graph is not None:
                pair.graph.remove(pair, safe=True)
        at += 1


def _set_inputs(node: ir.Node, inputs: list[ir.Value | None]) -> None:
    node.resize_inputs(len(inputs))
    for at, value in enumerate(inputs):
        node.replace_input_with(at, value)


def name_of(rotation: Rotation) -> str:
    """Returns the name of the op that is written for a rotation."""
    node = rotation.result.producer()
    return f"{(node.name if node is not None else None) or rotation.result.name}/RotaryEmbedding"


def _write(node: ir.Node, rotation: Rotation, tables: Tables, caches: dict[tuple[object, ...], ir.Value]) -> Rotated:
    build = Builder(node, f"{node.name or rotation.result.name}/rope")
    name = name_of(rotation)
    rotation = _flattened(_with_the_rest(rotation))
    half = len(rotation.order) // 2
    before = lead(rotation.base.value, rotation.base.tail) or ()
    cos, sin = (write(tables, build, p) for p in (rotation.cos, rotation.sin))
    shapes = [dims(t) for t in (cos, sin)]
    if cos is None or sin is None or shapes[0] is None or shapes[1] is None:
        raise Refusal("R103", f"{label(node)} rotates by a table of unknown shape.")
    layout = layout_of((*before, 2 * half), (shapes[0], shapes[1]))
    if layout is None:
        raise Refusal(
            "R103",
            f"{label(node)} rotates a tensor [{', '.join(map(str, (*before, 2 * half)))}] by tables "
            f"{[list(s) for s in shapes if s is not None]}; RotaryEmbedding has one table for all heads.",
        )
    x = _x(build, rotation)
    for table in (cos, sin):
        x = widen(build, x, table)
    before = (dims(x) or ())[:-1]
    if x.dtype in (None, ir.DataType.DOUBLE) or {cos.dtype, sin.dtype} != {x.dtype}:
        raise Refusal(
            "R103",
            f"{label(node)} rotates {x.dtype} by tables of {cos.dtype}; the op has one type for both, not double.",
        )
    rows = []
    for product, table in ((rotation.cos, cos), (rotation.sin, sin)):
        key = (product, half, layout.axes, *(before[axis] for axis in layout.rows if axis is not None))
        if key not in caches:
            caches[key] = cache(build, table, x, layout, half)
        rows.append(caches[key])
    attributes: dict[str, Attribute] = {}
    if rotation.pairing == "interleaved":
        attributes["interleaved"] = 1
    if rotation.whole:
        attributes["rotary_embedding_dim"] = 2 * half
    turned = turn(build, x, layout)
    if len(layout.axes) == 2:
        attributes["num_heads"] = 1
    written = build.node(
        "RotaryEmbedding", [turned, *rows], attributes, dtypes=(x.dtype,), shapes=(turned.shape,), name=name
    )
    result = rotation.result
    output = turn_back(build, written.outputs[0], layout)
    if rotation.tail != 1:
        shape = dims(result) or ()
        places = build.axes(*[0] * len(before), *(d for d in shape[len(before) :] if isinstance(d, int)))
        output = build("Reshape", output, places, dtype=x.dtype)
    output.shape = result.shape
    take_place(result, output)
    return Rotated(written, output)


def _x(build: Builder, rotation: Rotation) -> ir.Value:
    """Returns what is rotated: a tensor the graph has already, or the channels of the base in the operator's order."""
    base = rotation.base
    all_of_base = everything(base.value, base.tail)
    if all_of_base is not None and rotation.whole:
        found = taken(build, all_of_base)
    else:
        there = _existing(rotation)
        if there is not None:
            return there
        found = taken(build, Channels(base.value, base.tail, rotation.order))
    for dtype in rotation.casts:
        found = build("Cast", found, dtype=dtype, shape=found.shape, to=int(dtype))
    return found


def _existing(rotation: Rotation) -> ir.Value | None:
    """Returns a tensor between the base and the result that holds just the channels wanted, in order and type."""
    wanted = (Term(1, rotation.order, rotation.casts),)
    before = lead(rotation.base.value, rotation.base.tail)
    maker = rotation.result.producer()
    graph = maker.graph if maker is not None else None
    near = [rotation.base.value]
    seen: set[ir.Value] = set()
    for _ in range(5):
        following: list[ir.Value] = []
        for value in near:
            whole = everything(value) if lead(value, 1) == before else None
            if whole is not None and len(whole.pick) == len(rotation.order):
                try:
                    if terms(whole, rotation.base) == wanted:
                        return value
                except NotLinearError:
                    pass
            for user, _ in value.uses():
                moves = user.op_type in ("Slice", "Split", "Reshape", "Cast", "Transpose", "Gather", "Concat")
                if moves and user.graph is graph:
                    following += [v for v in user.outputs if v not in seen]
                seen.update(user.outputs)
        near = following
    return None


def _with_the_rest(rotation: Rotation) -> Rotation:
    """Where the channels after the rotated ones are concatenated to them, the rotation of the whole tensor."""
    users = [user for user, _ in rotation.result.uses()]
    whole = everything(rotation.base.value, rotation.base.tail)
    if rotation.whole or rotation.tail != 1 or rotation.casts or whole is None or rotation.result.is_graph_output():
        return rotation
    concat = users[0] if len(users) == 1 else None
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return rotation
    length = rank(rotation.result)
    if length is None or attribute(concat, "axis", 0) % length != length - 1:
        return rotation
    first, rest = concat.inputs
    source = _source(Channels(rotation.base.value, rotation.base.tail, rotation.order))
    after = everything(rest) if rest is not None else None
    if first is not rotation.result or after is None:
        return rotation
    after = _source(after)
    if (after.value, after.tail) != (source.value, source.tail):
        return rotation
    total = everything(source.value, source.tail)
    if total is None or (*source.pick, *after.pick) != total.pick or lead(source.value, source.tail) != _lead(rotation):
        return rotation
    base = replace(rotation.base, value=source.value, tail=source.tail)
    return replace(rotation, base=base, order=source.pick, result=concat.outputs[0], whole=True)


def _flattened(rotation: Rotation) -> Rotation:
    """Where pairs [.., D/2, 2] are only flattened to [.., D] after being rotated, the rotation of that tensor."""
    users = [user for user, _ in rotation.result.uses()]
    if rotation.tail == 1 or rotation.result.is_graph_output() or len(users) != 1 or users[0].op_type != "Reshape":
        return rotation
    flat = everything(users[0].outputs[0])
    if flat is None or step(flat) != (everything(rotation.result, rotation.tail),):
        return rotation
    return replace(rotation, result=flat.value, tail=1)


def _lead(rotation: Rotation) -> tuple[int | str, ...] | None:
    return lead(rotation.base.value, rotation.base.tail)


def _source(channels: Channels) -> Channels:
    """Follows channels back as far as they come from one tensor."""
    while True:
        moved = step(channels)
        if moved is None or len(moved) != 1:
            return channels
        channels = moved[0]
