"""A causal model as a step with a cache that grows: past keys and values come in, those with the new tokens go out.

    prefill: past of length 0, all tokens of the prompt          step: the past, one token or several

Both are one graph. In ONNX, `is_causal` with a past counts from the past's end, so it needs no mask of its own.
"""

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.decoding import Cache
from export.decode.positions import Positions
from export.decode.tokens import BROADCAST, Tokens, read, refused
from export.graph.build import Builder
from export.graph.shapes import clean, infer, simplest
from export.graph.values import attribute, dim, dims, label, rank

_INT = ir.DataType.INT64


@dataclass(frozen=True)
class Step:
    """A graph that runs new tokens behind those whose keys and values are cached.

    Attributes:
        model: The graph.
        tokens: Names of the inputs that hold new tokens, [batch, length, ...].
        mask: Name of the padding mask over past and new tokens, [batch, past + length]; None where it has none.
        caches: Its caches.
    """

    model: ir.Model
    tokens: tuple[str, ...]
    mask: str | None
    caches: tuple[Cache, ...]


class _Growing:
    """Positions past .. past + new of past + new."""

    keeps_rank = True

    def __init__(self, past: ir.Value, total: ir.Value, new: str) -> None:
        self._past, self._total, self._new = past, total, new

    def total(self, build: Builder) -> ir.Value:
        return self._total

    def batch(self, build: Builder, size: ir.Value) -> ir.Value:
        return size

    def mask(self, value: ir.Value, build: Builder) -> ir.Value:
        return value

    def rows(self, build: Builder, value: ir.Value, axis: int, like: ir.Value) -> ir.Value:
        cut = build("Slice", value, self._past, self._total, build.axes(axis), build.axes(1), dtype=like.dtype)
        whole = simplest(f"past + {self._new}")
        sizes = [whole if d == self._new and i != axis else d for i, d in enumerate(dims(like) or ())]
        sizes[axis] = self._new  # a slice may say Min(longest, length)
        cut.shape = ir.Shape(sizes)
        return cut


def grow(fused: ir.Model) -> Step:
    """Returns a fused model with past and present tensors at each of its self-attentions.

    Args:
        fused: Each causal self-attention in it is one op; not changed.

    Raises:
        UsageError: The model cannot be run a token at a time; the message says which node forbids it.
    """
    model = fused.clone()
    infer(model)
    graph = model.graph
    tokens = read(graph)
    for node in tokens.attentions:
        require_causal(node, tokens)
    first = next(iter(graph))
    start = Builder(first, "decode")
    pasts = [[_input(graph, node, i, at, tokens) for at in (1, 2)] for i, node in enumerate(tokens.attentions)]
    past = start("Shape", pasts[0][0], dtype=_INT, shape=ir.Shape([1]), start=2, end=3)
    new = start("Shape", tokens.inputs[0], dtype=_INT, shape=ir.Shape([1]), start=1, end=2)
    total = start("Add", past, new, dtype=_INT, shape=ir.Shape([1]))
    frame = _Growing(past, total, tokens.length)
    positions = Positions(tokens, frame)
    nodes = [n for n in graph if any(v in tokens.content for v in n.outputs)]
    for mask in tokens.masks:
        _sizes_of_new(mask, past, total, start)
    place(nodes, tokens, positions)
    caches = []
    for i, (node, inputs) in enumerate(zip(tokens.attentions, pasts, strict=True)):
        caches += _present(graph, node, i, inputs)
    for mask in tokens.masks:
        mask.shape = ir.Shape([tokens.batch, f"past + {tokens.length}"])
    finish(model)
    masks = [str(m.name) for m in tokens.masks if m.uses()]
    return Step(model, tuple(str(v.name) for v in tokens.inputs), masks[0] if masks else None, tuple(caches))


def require_causal(node: ir.Node, tokens: Tokens) -> None:
    """Raises UsageError unless no query of an attention sees a later key, by attribute or by a proof of its mask."""
    from export.fuse.masks.prove import Prover

    if attribute(node, "is_causal", 0) == 1:
        return
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    query, key = dims(node.inputs[0]), dims(node.inputs[1])
    if mask is not None and query is not None and key is not None and len(query) == len(key) == 4:
        proof = Prover().prove(mask, (query[0], query[1], query[2], key[2]))
        if proof is not None and proof.causal is not None:
            return
    raise refused(f"{label(node)} is not causal, or not provably so: an early token would see later ones.")


def place(nodes: list[ir.Node], tokens: Tokens, positions: Positions) -> None:
    """Cuts every positional tensor that content is computed with to the rows of the step."""
    for node in nodes:
        build = Builder(node, f"{node.name or node.outputs[0].name}/decode")
        attention = node.op_type == "Attention" and node.domain == ""
        for at, value in list(tokens.data(node)):
            if value in tokens.content or not positions.follows_length(value):
                continue
            if dims(value) is None:
                raise refused(f"the size of {value.name!r}, which {label(node)} reads, is not known.")
            axes, size = tokens.axes(value) or _aligned(node, value, tokens), rank(value) or 0
            if attention and at == 3:
                keyed = positions.whole(value, build)
                cut = positions.rows(value, size - 2, build) if size >= 2 and size - 2 in axes else keyed
            elif len(axes) == 1:
                cut = positions.rows(value, axes[0], build)
            elif not axes and all(isinstance(d, int) or d == tokens.batch for d in dims(value) or ()):
                cut = positions.whole(value, build)
            else:
                raise refused(f"{label(node)} reads {value.name!r} {value.shape}, in which not one axis counts tokens.")
            node.replace_input_with(at, cut)


def _aligned(node: ir.Node, value: ir.Value, tokens: Tokens) -> tuple[int, ...]:
    """Returns the axis of unknown size that broadcasting lays over the tokens of a node's output."""
    output, found = node.outputs[0], dims(value) or ()
    places = [at - (rank(output) or 0) for at in tokens.axes(output)]
    if node.op_type not in BROADCAST or len(places) != 1 or len(found) < -places[0]:
        return ()
    unknown = isinstance(found[places[0]], str) and found[places[0]] != tokens.batch
    return (len(found) + places[0],) if unknown else ()


def finish(model: ir.Model) -> None:
    """Removes what nobody reads any more and writes the shapes that follow."""
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    infer(model)
    clean(model)


def _sizes_of_new(mask: ir.Value, past: ir.Value, total: ir.Value, build: Builder) -> None:
    """Lets sizes that content takes from the padding mask be those of the new tokens."""
    measured = [(node, at) for node, at in mask.uses() if node.op_type == "Shape"]
    if measured:
        cut = build("Slice", mask, past, total, build.axes(1), build.axes(1), dtype=mask.dtype, shape=mask.shape)
        for node, at in measured:
            node.replace_input_with(at, cut)


def heads(attention: ir.Node, at: int) -> tuple[int | str, int | str, int | str]:
    """Returns (batch, heads, head size) of an attention's keys (1) or values (2).

    Raises:
        UsageError: They are not known.
    """
    value = attention.inputs[at]
    sizes = dims(value)
    if sizes is not None and len(sizes) == 4:
        return sizes[0], sizes[1], sizes[3]
    count = attribute(attention, "kv_num_heads", 0)
    if sizes is None or not count or not isinstance(sizes[-1], int):
        raise refused(f"the heads of {label(attention)} are not known.")
    return sizes[0], count, sizes[-1] // count


def _input(graph: ir.Graph, attention: ir.Node, index: int, at: int, tokens: Tokens) -> ir.Value:
    _, count, size = heads(attention, at)
    value = attention.inputs[at]
    past = ir.Value(
        name=f"past_key_values.{index}.{'key' if at == 1 else 'value'}",
        type=None if value is None or value.dtype is None else ir.TensorType(value.dtype),
        shape=ir.Shape([tokens.batch, count, "past", size]),
    )
    if any(v.name == past.name for v in graph.inputs) or dim(past, 1) is None:
        raise refused(f"{past.name!r} is there already.")
    graph.inputs.append(past)
    return past


def _present(graph: ir.Graph, attention: ir.Node, index: int, pasts: list[ir.Value]) -> list[Cache]:
    attention.resize_inputs(max(6, len(attention.inputs)))
    attention.resize_outputs(3)
    caches = []
    for at, past in enumerate(pasts, start=1):
        attention.replace_input_with(at + 3, past)
        present = attention.outputs[at]
        present.name = f"present.{index}.{'key' if at == 1 else 'value'}"
        present.type = past.type
        graph.outputs.append(present)
        caches.append(Cache(str(past.name), present.name, 2))
    return caches
