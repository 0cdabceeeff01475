"""Law: K and V repeated for every query head need not be (grouped-query attention is native in Attention).

`repeat_kv` in every spelling is Unsqueeze, Expand by n, Reshape that merges the two axes, or a Gather of heads; query
head h then uses key/value head h // n, which is just what Attention does with fewer K/V heads.
"""

from dataclasses import dataclass

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import Dim, attribute, dim, dims, integers, made_by, permutation, rank


@dataclass(frozen=True)
class _Repeat:
    """A repeated tensor: the one before, how to transpose it to [B, Hkv, T, D], and how often heads were repeated."""

    base: ir.Value
    perm: tuple[int, ...] | None
    times: int


def share_heads(attention: ir.Node) -> bool:
    """Lets an Attention read K and V before they were repeated per query head; returns whether it did."""
    key, value = attention.inputs[1], attention.inputs[2]
    if key is None or value is None:
        return False
    one, two = _unrepeat(key), _unrepeat(value)
    if one is None or two is None or one.times != two.times:
        return False
    build = Builder(attention, f"{attention.name}/shared")
    for at, repeat in ((1, one), (2, two)):
        source = repeat.base
        if repeat.perm is not None:
            shape = dims(source)
            placed = None if shape is None else ir.Shape([shape[axis] for axis in repeat.perm])
            source = build("Transpose", source, dtype=source.dtype, shape=placed, perm=repeat.perm)
        attention.replace_input_with(at, source)
    return True


def _unrepeat(value: ir.Value) -> _Repeat | None:
    perm = None
    turned = made_by(value, "Transpose")
    source: ir.Value | None = value
    if turned is not None:
        perm, source = permutation(turned), turned.inputs[0]
    heads = 1 if perm is None else perm[1]
    chosen = made_by(source, "Gather", "GatherND")
    if chosen is not None:
        return _chosen(chosen, heads, perm)
    merge = made_by(source, "Reshape")
    if merge is None or source is None:
        return None
    merged, wide = dims(source), dims(merge.inputs[0])
    if merged is None or wide is None or len(merged) != 4 or len(wide) != 5:
        return None
    times = wide[heads + 1]
    if not isinstance(times, int) or not _merges(merged, wide, heads):
        return None
    base = _before_expand(merge.inputs[0], heads + 1)
    return None if base is None else _Repeat(base, perm, times)


def _chosen(gather: ir.Node, axis: int, perm: tuple[int, ...] | None) -> _Repeat | None:
    """Reads heads chosen by their numbers, each some times in a row: 0, 0, 1, 1."""
    base, order = gather.inputs[0], integers(gather.inputs[1])
    few = dim(base, axis)
    along = attribute(gather, "axis", 0) % 4
    plain = rank(gather.inputs[1]) == 1
    if gather.op_type == "GatherND":
        plain = (
            dim(gather.inputs[1], -1) == 1 and rank(gather.inputs[1]) == 2 and not attribute(gather, "batch_dims", 0)
        )
    if base is None or rank(base) != 4 or along != axis or not plain:
        return None
    if not order or not isinstance(few, int) or len(order) % few:
        return None
    times = len(order) // few
    return _Repeat(base, perm, times) if order == tuple(at // times for at in range(len(order))) else None


def _merges(merged: tuple[Dim, ...], wide: tuple[Dim, ...], heads: int) -> bool:
    """[.., Hkv, n, ..] became [.., Hkv*n, ..] and every other axis stayed."""
    kept = wide[:heads] + wide[heads + 2 :]
    few, many, times = wide[heads], merged[heads], wide[heads + 1]
    product = isinstance(few, int) and isinstance(times, int) and few * times == many
    return product and kept == merged[:heads] + merged[heads + 1 :]


def _more_than_one(size: Dim) -> bool:
    """Says whether a size is surely 2 or more: Expand keeps it then, whatever the shape it is given is called."""
    terms = [int(t) if t.isdigit() else 0 if t.isidentifier() else -1 for t in str(size).split(" + ")]
    return min(terms) >= 0 and sum(terms) > 1


def _before_expand(value: ir.Value | None, axis: int) -> ir.Value | None:
    """Returns the four-axis tensor that was unsqueezed at `axis` and expanded along it alone."""
    expand = made_by(value, "Expand", "Tile")
    if expand is None:
        return None
    narrow = expand.inputs[0]
    shape, wide = dims(narrow), dims(value)
    if shape is None or wide is None or len(shape) != 5 or shape[axis] != 1:
        return None
    for at, (before, after) in enumerate(zip(shape, wide, strict=True)):
        if at != axis and before != after and not (expand.op_type == "Expand" and _more_than_one(before)):
            return None
    inserted = made_by(narrow, "Unsqueeze", "Reshape")
    base = inserted.inputs[0] if inserted is not None else None
    return base if base is not None and dims(base) == shape[:axis] + shape[axis + 1 :] else None
