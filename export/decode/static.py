"""A causal model as two graphs over a cache of fixed length, whose slots are written in place.

    prefill: the prompt, padded on the right; causal attention among its own tokens; keys and values go to slots 0, 1..
    step:    one token a row at slot `write_indices[b]`; it sees the slots up to its own

Each row has its own position, so a batch may be ragged without a padding mask: what padding wrote lies behind a row's
own tokens, is not seen, and is overwritten by the tokens that follow. In ONNX that is TensorScatter, and Attention with
nonpad_kv_seqlen.
"""

import numpy as np
import onnx_ir as ir

from engines.decoding import Cache
from export.decode.grow import finish, heads, place, require_causal
from export.decode.positions import Positions
from export.decode.tokens import Tokens, read, refused
from export.fuse import Options, fuse
from export.graph.build import Builder
from export.graph.opset import raise_opset
from export.graph.shapes import infer
from export.graph.values import attribute, dim, label, rank
from export.lower.lengths import POSITIVE

_INT = ir.DataType.INT64
OPSET = 24
"""First opset with TensorScatter and nonpad_kv_seqlen."""
WRITE_INDICES = "write_indices"


class Static:
    """A model's prefill and step graphs over a static cache.

    Attributes:
        prefill, step: The graphs.
        tokens: Names of the inputs that hold new tokens, [batch, length, ...].
        caches: The caches, [batch, heads, capacity, head size].
    """

    def __init__(self, fused: ir.Model, capacity: int) -> None:
        """Makes both graphs of a fused model.

        Args:
            fused: Each causal self-attention in it is one op; not changed.
            capacity: Slots of the cache.

        Raises:
            UsageError: The model cannot be run a token at a time; the message says which node forbids it.
        """
        self.prefill = _unmasked(fused)
        self.step = self.prefill.clone()
        tokens, self.caches = _prefill(self.prefill, capacity)
        self.tokens = tuple(str(v.name) for v in tokens.inputs)
        _step(self.step, capacity)


class _Slot:
    """The position `write_indices[b]` of each row, of as many as the cache has slots."""

    keeps_rank = False

    def __init__(self, slots: ir.Value, capacity: int, tokens: Tokens) -> None:
        self._slots, self._capacity, self._tokens = slots, capacity, tokens

    def total(self, build: Builder) -> ir.Value:
        return build.axes(self._capacity)

    def batch(self, build: Builder, size: ir.Value) -> ir.Value:
        return build.axes(1)

    def mask(self, value: ir.Value, build: Builder) -> ir.Value:
        raise refused(f"{value.name!r} hides tokens of a cache that has its own lengths.")

    def rows(self, build: Builder, value: ir.Value, axis: int, like: ir.Value) -> ir.Value:
        size = rank(like) or 0
        cut = build("Gather", value, self._slots, dtype=like.dtype, axis=axis)
        order = list(range(size))
        if axis and dim(like, 0) in (1, self._tokens.batch):  # one table for the batch: its first axis is 1
            order[0], order[axis] = axis, 0
            return build("Transpose", cut, dtype=like.dtype, perm=order)
        order.remove(axis)
        if axis:
            cut = build("Transpose", cut, dtype=like.dtype, perm=[axis, *order])
        return build("Unsqueeze", cut, build.axes(axis + 1), dtype=like.dtype)


def _unmasked(fused: ir.Model) -> ir.Model:
    """Returns the model without its padding mask: all tokens are real, and no mask says so."""
    model = fused.clone()
    raise_opset(model, OPSET)
    infer(model)
    tokens = read(model.graph)
    for node in tokens.attentions:
        require_causal(node, tokens)
    if not tokens.masks:
        return model
    build = Builder(next(iter(model.graph)), "decode/real")
    size = build("Shape", tokens.inputs[0], dtype=_INT, shape=ir.Shape([2]), start=0, end=2)
    for mask in tokens.masks:
        dtype = mask.dtype or ir.DataType.BOOL
        one = build.constant(np.asarray(1, dtype.numpy()))
        mask.replace_all_uses_with(build("Expand", one, size, dtype=dtype, shape=mask.shape))
        model.graph.inputs.remove(mask)
    return fuse(model, Options(verify=False)).model


def _prefill(model: ir.Model, capacity: int) -> tuple[Tokens, tuple[Cache, ...]]:
    infer(model)
    tokens = read(model.graph)
    slots = _slots(model.graph, tokens)
    caches: list[Cache] = []
    for index, node in enumerate(tokens.attentions):
        made, _ = _written(model.graph, node, index, capacity, slots, tokens)
        caches += made
    finish(model)
    return tokens, tuple(caches)


def _step(model: ir.Model, capacity: int) -> None:
    infer(model)
    graph = model.graph
    tokens = read(graph)
    slots = _slots(graph, tokens)
    start = Builder(next(iter(graph)), "decode")
    valid = start("Add", slots, start.axes(1), dtype=_INT, shape=slots.shape)
    nodes = [n for n in graph if any(v in tokens.content for v in n.outputs)]
    place(nodes, tokens, Positions(tokens, _Slot(slots, capacity, tokens)))
    for index, node in enumerate(tokens.attentions):
        _, (keys, values) = _written(graph, node, index, capacity, slots, tokens)
        _attend(node, keys, values, valid)
    for value in tokens.inputs:
        value.shape = ir.Shape([1 if d == tokens.length else d for d in (value.shape or ())])
    finish(model)


def _slots(graph: ir.Graph, tokens: Tokens) -> ir.Value:
    slots = ir.Value(name=WRITE_INDICES, type=ir.TensorType(_INT), shape=ir.Shape([tokens.batch]))
    if any(v.name == WRITE_INDICES for v in graph.inputs):
        raise refused(f"it has an input {WRITE_INDICES!r} of its own.")
    graph.inputs.append(slots)
    return slots


def _written(
    graph: ir.Graph, node: ir.Node, index: int, capacity: int, slots: ir.Value, tokens: Tokens
) -> tuple[list[Cache], list[ir.Value]]:
    """Writes an attention's new keys and values into their caches; returns these and the tensors after writing."""
    build = Builder(node, f"{node.name or node.outputs[0].name}/decode/cache")
    caches, presents = [], []
    for at, kind in ((1, "key"), (2, "value")):
        _, count, size = heads(node, at)
        new = node.inputs[at]
        if new is None or new.dtype is None:
            raise refused(f"the element type of {label(node)} is not known.")
        shape = ir.Shape([tokens.batch, count, capacity, size])
        past = ir.Value(name=f"past_key_values.{index}.{kind}", type=ir.TensorType(new.dtype), shape=shape)
        graph.inputs.append(past)
        four = new
        if rank(new) == 3:
            split = build("Reshape", new, build.axes(0, 0, int(count), int(size)), dtype=new.dtype)
            four = build("Transpose", split, dtype=new.dtype, perm=(0, 2, 1, 3))
        present = build("TensorScatter", past, four, slots, dtype=new.dtype, shape=shape, axis=2)
        present.name = f"present.{index}.{kind}"
        graph.outputs.append(present)
        caches.append(Cache(str(past.name), present.name, 2))
        presents.append(present)
    return caches, presents


def _attend(node: ir.Node, keys: ir.Value, values: ir.Value, valid: ir.Value) -> None:
    """Lets a single query attend to the slots that are written, its own the last of them."""
    build = Builder(node, f"{node.name or node.outputs[0].name}/decode/query")
    query, output = node.inputs[0], node.outputs[0]
    if rank(query) == 3:  # the cache has four axes, so have all
        size = dim(query, 2)
        count = attribute(node, "q_num_heads", 0)
        if not isinstance(size, int) or not count:
            raise refused(f"the heads of {label(node)} are not known.")
        split = build("Reshape", query, build.axes(0, 0, count, size // count), dtype=output.dtype)
        query = build("Transpose", split, dtype=output.dtype, perm=(0, 2, 1, 3))
        for name in ("q_num_heads", "kv_num_heads"):
            node.attributes.pop(name, None)
        _merged(node, output)
    node.attributes.pop("is_causal", None)
    node.resize_inputs(7)
    for at, value in ((0, query), (1, keys), (2, values), (6, valid)):
        node.replace_input_with(at, value)
    node.metadata_props[POSITIVE] = "yes"


def _merged(node: ir.Node, output: ir.Value) -> None:
    """Puts the heads of an output back into its channels, for those who read it so."""
    graph, readers = node.graph, list(output.uses())
    if not isinstance(graph, ir.Graph):
        raise refused(f"{label(node)} stands in no graph.")
    back = ir.node("Transpose", [output], {"perm": (0, 2, 1, 3)})
    axes = ir.node("Constant", [], {"value_ints": [0, 0, -1]})
    flat = ir.node("Reshape", [back.outputs[0], axes.outputs[0]])
    graph.insert_after(node, [back, axes, flat])
    for user, at in readers:
        user.replace_input_with(at, flat.outputs[0])
    if output.is_graph_output():
        raise refused(f"{label(node)} is an output of the model itself.")
