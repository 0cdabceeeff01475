"""Attention nodes get the best form of what their masks mean: is_causal, a narrower mask, or no mask at all.

Fused ones and those that arrived as one op are treated alike. A number that hides keys is not -inf: a row in which all
keys carry it is the mean of V, where a boolean mask and is_causal give 0. So such a mask becomes boolean only where
every row provably sees a key, or where rows without keys were asked to be zero.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from export.fuse.masks.formula import TRUE, Formula, all_of
from export.fuse.masks.meaning import Stuck
from export.fuse.masks.narrow import Narrow
from export.fuse.masks.polynomial import Poly, size
from export.fuse.masks.prove import Proof, Prover
from export.graph.build import Builder
from export.graph.values import Dim, attribute, dim, graphs, rank
from export.lower.bounds import bound
from export.lower.lowering import LOWERED_FOR

_ORDINARY = 1e4
"""What is added to scores and surely stays below this in size does not itself hide keys."""


@dataclass(frozen=True)
class Upgrade:
    """What became of one Attention node.

    Attributes:
        changes: What was changed, in words; empty where nothing was.
        kind: What was proved of its mask ("causal+padding"), or None where nothing is new.
        zeroed: A row without keys gives 0 now and gave the mean of V before.
        sees: Every row provably sees a key.
    """

    changes: tuple[str, ...] = ()
    kind: str | None = None
    zeroed: bool = False
    sees: bool = False


def upgrade_all(
    model: ir.Model, masked_rows: Literal["keep", "zero"], plain: Container[str | None] = ()
) -> dict[ir.Node, Upgrade]:
    """Upgrades the mask of every Attention node of a model in place, but for those named in `plain`.

    Args:
        model: Its shapes are inferred.
        masked_rows: What a row without keys means.
        plain: Names of nodes to leave as they are.

    Returns:
        What became of each node that was looked at.
    """
    work = _Work(masked_rows)
    found = {}
    for graph in graphs(model):
        for node in list(graph):
            arrived = node.op_type == "Attention" and node.domain == "" and LOWERED_FOR not in node.metadata_props
            if arrived and node.name not in plain:
                found[node] = work.upgrade(node)
    if any(upgrade.changes for upgrade in found.values()):
        common.RemoveUnusedNodesPass()(model)
    return found


@dataclass
class _Work:
    masked_rows: str
    prover: Prover = field(default_factory=Prover)
    written: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)
    """Masks written for earlier layers: the layers of a model share theirs."""

    def upgrade(self, node: ir.Node) -> Upgrade:
        mask, seen = node.inputs[3] if len(node.inputs) > 3 else None, _frame(node)
        if mask is None or seen is None or attribute(node, "qk_matmul_output_mode", 0) in (1, 2):
            return Upgrade()
        frame, offset = seen
        proof = self.prover.prove(mask, frame, offset)
        if proof is None:
            return Upgrade()
        causal = attribute(node, "is_causal", 0) == 1
        kind = None
        if proof.structured:
            kind = proof.kind if not causal or "causal" in proof.kind else f"causal+{proof.kind}".removesuffix("+none")
        sees = proof.sees and proof.bias == () and not causal
        try:
            return replace(self._rewritten(node, mask, frame, proof, causal, kind), sees=sees)
        except Stuck:
            return Upgrade(kind=kind, sees=sees)

    def _rewritten(
        self, node: ir.Node, mask: ir.Value, frame: tuple[Dim | None, ...], proof: Proof, causal: bool, kind: str | None
    ) -> Upgrade:
        exact = proof.fills <= {-np.inf}
        bounded = proof.bias is not None and all(map(_small, proof.bias))
        asked = self.masked_rows == "zero" and not _weighed(node)
        zeroed = not exact and not (proof.sees and not causal) and asked and bounded
        if not exact and not zeroed and not (proof.sees and not causal and bounded):
            return self._narrowed(node, mask, frame, proof, kind)
        if proof.bias is None:
            return Upgrade(kind=kind)
        rest = all_of(part for _, part in proof.parts if part != proof.causal)
        becomes = not causal and proof.causal is not None
        if "i" in rest.axes:
            return Upgrade(kind=kind)
        fill = None if not proof.bias else -np.inf
        better = becomes or (rest == TRUE and not proof.bias) or _shrinks(mask, _axes(rest, proof.bias))
        if not better and not zeroed:
            return Upgrade(kind=kind)
        new = self._write(node, frame, rest, proof.bias, fill, mask.dtype)
        _set_mask(node, new)
        if becomes:
            node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
        return Upgrade(tuple(_words(becomes, new, rest)), kind, zeroed)

    def _narrowed(
        self, node: ir.Node, mask: ir.Value, frame: tuple[Dim | None, ...], proof: Proof, kind: str | None
    ) -> Upgrade:
        """A mask of one number keeps it, on fewer axes."""
        unique = proof.bias == () and len(proof.fills) == 1
        if not unique or "i" in proof.keep.axes or not _shrinks(mask, _axes(proof.keep, ())):
            return Upgrade(kind=kind)
        (fill,) = proof.fills
        new = self._write(node, frame, proof.keep, (), fill, mask.dtype)
        _set_mask(node, new)
        return Upgrade(tuple(_words(False, new, proof.keep)), kind)

    def _write(
        self,
        node: ir.Node,
        frame: tuple[Dim | None, ...],
        keep: Formula,
        bias: tuple[Poly, ...],
        fill: float | None,
        dtype: ir.DataType | None,
    ) -> ir.Value | None:
        """Returns the mask tensor: boolean without a fill, else what is added; None where it hides and adds nothing."""
        key = (id(node.graph), frame, keep, bias, fill, dtype)
        if key in self.written:
            return self.written[key]
        query, keys = node.inputs[:2]
        if query is None or keys is None or dtype is None or ((keep != TRUE or bias) and "j" not in _axes(keep, bias)):
            raise Stuck  # a mask with one column for all keys is read in two ways
        build = Builder(node, f"{node.name or node.outputs[0].name}/mask")
        past = node.inputs[4] if len(node.inputs) > 4 else None
        narrow = Narrow(build, self.prover.meaning(frame), query, keys, past)
        total: ir.Value | None = None
        for poly in bias:
            term = narrow.element(poly)
            if term.dtype != dtype:
                term = build("Cast", term, dtype=dtype, shape=term.shape, to=int(dtype))
            total = term if total is None else build("Add", total, term, dtype=dtype)
        if keep != TRUE:
            shown = narrow.formula(keep)
            if fill is not None:
                kept = total if total is not None else build.number(0.0, dtype)
                shape = shown.shape if total is None else None
                total = build("Where", shown, kept, build.number(fill, dtype), dtype=dtype, shape=shape)
            else:
                total = shown
        if total is not None:
            self.written[key] = total
        return total


def _frame(node: ir.Node) -> tuple[tuple[Dim | None, ...], Poly] | None:
    """Returns the dimensions [B, H, S, T] of an attention's scores and the position of its first query."""
    query, key = node.inputs[:2]
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    windows = [attribute(node, name, -1) for name in ("left_window_size", "right_window_size")]
    if inputs[6] is not None or windows != [-1, -1] or rank(query) != 4 or rank(key) != 4:
        return None
    lengths, offset = dim(key, 2), Poly()
    if inputs[4] is not None:
        past = dim(inputs[4], 2)
        if past is None or lengths is None:
            return None
        offset = Poly.of(past) if isinstance(past, int) else size(past)
        lengths = past + lengths if isinstance(past, int) and isinstance(lengths, int) else f"({past}) + ({lengths})"
    frame = (dim(query, 0), dim(query, 1), dim(query, 2), lengths)
    return None if None in frame else (frame, offset)


def _small(poly: Poly) -> bool:
    """Says whether what is added to the scores surely hides no key."""
    value = poly.atom.payload[0] if poly.atom is not None and poly.atom.kind == "read" else None
    if value is None:
        return False
    found = bound(value)
    return not found.infinite and found.finite <= _ORDINARY


def _axes(keep: Formula, bias: tuple[Poly, ...]) -> frozenset[str]:
    return keep.axes.union(*(p.axes for p in bias))


def _shrinks(mask: ir.Value, axes: frozenset[str]) -> bool:
    """Says whether a mask has an axis that it does not need."""
    length = rank(mask) or 0
    return any(dim(mask, at - 4) != 1 and name not in axes for at, name in enumerate("bhi") if at >= 4 - length)


def _weighed(node: ir.Node) -> bool:
    """Says whether the graph goes on with the weights: it may divide by their sum."""
    return len(node.outputs) > 3 and bool(node.outputs[3].uses())


def _set_mask(node: ir.Node, mask: ir.Value | None) -> None:
    if mask is not None or any(v is not None for v in node.inputs[4:]):
        node.replace_input_with(3, mask)
    else:
        node.resize_inputs(3)


def _words(causal: bool, mask: ir.Value | None, rest: Formula) -> Iterator[str]:
    if causal:
        yield "its mask is is_causal" + ("" if mask is None else " and what else it hides")
    elif mask is None:
        yield "its mask, which hid nothing, is gone"
    if mask is not None:
        shape = ", ".join(str(d) for d in mask.shape or ())
        yield f"the mask is [{shape}]"
