"""Heads stay in the channels, [B, S, H*D], for targets that read them there: the Transposes around an attention go.

Exports split channels into heads and move the heads forward, [B, S, H*D] -> [B, S, H, D] -> [B, H, S, D], before an
attention, and do the reverse after it. The operator's three-axis form says the same with numbers of heads. It is
written where Q, K and V all come that way, through a RotaryEmbedding or not (which has such a form too); where one of
them does not, as many Transposes would be needed as go.
"""

from dataclasses import replace

import onnx_ir as ir

from export.graph.build import Attribute, Builder
from export.graph.values import attribute, dim, dims, integers, made_by, permutation, rank
from export.lower.call import Call, take_place
from export.lower.step import Step
from export.lower.targets import Target

_SWAP = (0, 2, 1, 3)
_MOVES = frozenset({
    "Cast", "Concat", "Constant", "Expand", "Gather", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Not",
    "Range", "Reshape", "RotaryEmbedding", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What may be left without a reader: the moves themselves, the shapes they were told, and masks that became numbers."""


def lower_layout(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Reads Q, K and V before their heads were moved forward."""
    ours = row.flat and call.heads is None and not call.decomposed and not call.swapped
    if not ours or call.score_mode is not None or call.attends is not None or call.value_size is not None:
        return call, ()
    heads, kv_heads = dim(call.query, 1), dim(call.key, 1)
    operands = [_Operand.of(v) for v in (call.query, call.key, call.value)]
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or dim(call.value, 1) != kv_heads:
        return call, ()
    if any(operand is None for operand in operands):
        return call, ()
    query, key, value = (o.write(build) for o in operands if o is not None)
    call = replace(call, query=query, key=key, value=value, heads=(heads, kv_heads))
    why = f"{row.title} reads heads in the channels, so that they need not be moved forward and back."
    return call, (call.said("heads in channels", why),)


class _Operand:
    """A tensor [B, H, S, D] that is a Transpose of [B, S, H, D], perhaps rotated since.

    Args:
        before: [B, S, H, D].
        heads: H.
        rotary: The RotaryEmbedding in between, or None.
    """

    def __init__(self, before: ir.Value, heads: int, rotary: ir.Node | None) -> None:
        self._before, self._heads, self._rotary = before, heads, rotary

    @staticmethod
    def of(value: ir.Value) -> "_Operand | None":
        """Reads a tensor as one, or returns None."""
        rotary = made_by(value, "RotaryEmbedding")
        source = value if rotary is None else rotary.inputs[0]
        turned = made_by(source, "Transpose")
        before = turned.inputs[0] if turned is not None else None
        if turned is None or before is None or permutation(turned) != _SWAP or rank(before) != 4:
            return None
        heads, size = dim(before, 2), dim(before, 3)
        if not isinstance(heads, int) or not isinstance(size, int):
            return None
        if rotary is not None and len(value.uses()) + value.is_graph_output() > 1:
            return None  # it would be rotated twice
        return _Operand(before, heads, rotary)

    def write(self, build: Builder) -> ir.Value:
        """Returns it as [B, S, H*D]."""
        flat = _flat(self._before, build)
        if self._rotary is None:
            return flat
        attributes: dict[str, Attribute] = {n: int(a.value) for n, a in self._rotary.attributes.items()}
        attributes["num_heads"] = self._heads
        made = build(
            "RotaryEmbedding", flat, *self._rotary.inputs[1:], dtype=flat.dtype, shape=flat.shape, **attributes
        )
        node = made.producer()
        if node is not None and self._rotary.graph is not None:
            node.metadata_props.update(self._rotary.metadata_props)
            node.name, self._rotary.name = self._rotary.name, f"{self._rotary.name}/four_axes"
        return made


def _flat(value: ir.Value, build: Builder) -> ir.Value:
    """Returns [B, S, H, D] as [B, S, H*D]: what it was reshaped from, where it was."""
    batch, length, heads, size = dims(value) or (None, None, dim(value, 2), dim(value, 3))
    split = made_by(value, "Reshape")
    source = split.inputs[0] if split is not None else None
    width = heads * size if isinstance(heads, int) and isinstance(size, int) else None
    if source is not None and rank(source) == 3 and dim(source, 2) == width and _keeps_rows(value, source, split):
        return source
    shape = ir.Shape([batch, length, width])
    return build("Reshape", value, build.axes(0, 0, -1 if width is None else width), dtype=value.dtype, shape=shape)


def _keeps_rows(value: ir.Value, source: ir.Value, split: ir.Node | None) -> bool:
    """Says whether a split of the channels left batch and length as they were."""
    zeros = split is not None and (integers(split.inputs[1]) or ())[:2] == (0, 0)
    if zeros and split is not None and not attribute(split, "allowzero", 0):
        return True
    return all(dim(value, at) is not None and dim(value, at) == dim(source, at) for at in (0, 1))


def place_output(old: ir.Value, new: ir.Value, heads: int, build: Builder) -> None:
    """Lets the output [B, S, H*Dv] take the place of the one of four axes, [B, H, S, Dv].

    Args:
        old: The output of four axes.
        new: The one of three.
        heads: H.
        build: Where to insert.
    """
    batch, length, size = dim(old, 0), dim(old, 2), dim(old, 3)
    new.shape = ir.Shape([batch, length, heads * size if isinstance(size, int) else None])
    turns = [user for user, _ in old.uses() if user.op_type == "Transpose" and permutation(user) == _SWAP]
    for turned in (t.outputs[0] for t in turns):
        for merge, _ in list(turned.uses()):
            if merge.op_type != "Reshape" or not _merges(merge, turned):
                continue
            if merge.outputs[0].is_graph_output():  # its name stays
                take_place(merge.outputs[0], build("Identity", new, dtype=new.dtype, shape=new.shape))
            else:
                merge.outputs[0].replace_all_uses_with(new)
    target = build.axes(0, 0, heads, size if isinstance(size, int) else -1)
    apart = build("Reshape", new, target, dtype=new.dtype, shape=ir.Shape([batch, length, heads, size]))
    forward = build("Transpose", apart, dtype=new.dtype, shape=old.shape, perm=_SWAP)
    take_place(old, forward)


def sweep(graph: ir.Graph) -> None:
    """Removes the moves that nobody reads any more. (Unread outputs of other operators may be wanted by the target.)"""
    for node in reversed(list(graph)):
        ours = node.op_type in _MOVES and node.domain == ""
        if ours and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)


def _merges(merge: ir.Node, value: ir.Value) -> bool:
    """Says whether a Reshape makes [B, S, H*D] of [B, S, H, D]."""
    before, after, target = dims(value), dims(merge.outputs[0]), integers(merge.inputs[1]) or ()
    if len(target) == 3 and target[:2] == (0, 0) and not attribute(merge, "allowzero", 0):
        return True
    return before is not None and after is not None and len(after) == 3 and before[:2] == after[:2]
