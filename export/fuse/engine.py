"""The order of fusing: inline, raise the opset, apply laws, read every Softmax, emit, tidy, verify, report."""

from collections.abc import Container, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir
import onnx_ir.passes.common as common

from export import progress
from export.fuse.axes import Block
from export.fuse.contract import agree
from export.fuse.describe import describe
from export.fuse.describe_rotations import describe_rotations, unread
from export.fuse.emit import Emitted, emit
from export.fuse.masks.prove import Prover
from export.fuse.masks.upgrade import Upgrade, upgrade_all
from export.fuse.prepare import collector_paused, collector_sees_new, prepared, unreachable
from export.fuse.reader import Walk, read_scores
from export.fuse.rotary_embedding.fuse_rotations import fuse_rotations
from export.fuse.rotary_embedding.repair import repair_rotations
from export.fuse.rows import Attention, Rotation, Summary, Verification, summarise
from export.fuse.settle import settle
from export.fuse.terms import axis_from_right
from export.fuse.tidy import absorb_all, tidy
from export.fuse.weights import follow
from export.graph import shapes
from export.graph.laws import apply_laws, spell_out_softmaxes
from export.graph.opset import raise_opset
from export.graph.source_lines import module_path, source_line
from export.graph.values import Dim, Refusal, dim, graphs
from export.rules import rule

_ALREADY = {("", "Attention")} | {
    ("com.microsoft", op)
    for op in ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention")
}


_ROUNDS = 3
"""How often all that was not fused is read again, after something was."""


@dataclass(frozen=True)
class Options:
    """How to fuse.

    Attributes:
        verify: Run each fused block against the block it replaces, and put back the ones that differ.
        masked_rows: What a query row that sees no key means: "keep" what the graph meant, or "zero".
    """

    verify: bool = True
    masked_rows: Literal["keep", "zero"] = "keep"


@dataclass(frozen=True)
class FuseResult:
    """A fused model, and a row for each attention and each rotary embedding found in it."""

    model: ir.Model
    attentions: tuple[Attention, ...]
    rotations: tuple[Rotation, ...] = ()

    @property
    def masked_rows(self) -> Literal["keep", "zero"]:
        """What rows without keys mean now: "zero" where any fused attention gives 0 and gave NaN or mean(V) before."""
        return "zero" if any(row.masked_rows == "zero" for row in self.attentions) else "keep"

    @property
    def summary(self) -> Summary:
        """How many attentions were found, fused, kept and already one op."""
        return summarise(self.attentions)


@dataclass
class _Draft:
    """One attempt: the model, what was written for which Softmax, what became of other attentions, what stayed."""

    model: ir.Model
    emitted: list[tuple[ir.Node, Emitted]] = field(default_factory=list)
    rotated: list[ir.Node] = field(default_factory=list)
    unrotated: dict[ir.Node, Refusal] = field(default_factory=dict)
    arrived: dict[ir.Node, Dim | None] = field(default_factory=dict)
    """The attentions that were one op on arrival, with the key/value heads they had."""
    cached: list[ir.Node] = field(default_factory=list)
    upgraded: dict[ir.Node, Upgrade] = field(default_factory=dict)
    kept: list[Attention] = field(default_factory=list)

    @property
    def written(self) -> list[ir.Node]:
        """Every node that is not what it was: it is to be verified."""
        changed = [node for node in self.arrived if self.changes(node)]
        return list(dict.fromkeys([*(e.node for _, e in self.emitted), *self.rotated, *changed]))

    def changes(self, node: ir.Node) -> list[str]:
        """Returns what was changed about an attention that was one op on arrival, in words."""
        found = ["the cache in front of it is its past and present"] if node in self.cached else []
        before, after = self.arrived.get(node), dim(node.inputs[1], 1)
        if isinstance(before, int) and isinstance(after, int) and after < before:
            found.append(f"its {before} heads of keys and values, which were repeated, are {after}")
        return found + list(self.upgraded.get(node, Upgrade()).changes)


def fuse(model: ir.Model, options: Options = Options()) -> FuseResult:
    """Returns a copy of `model` in which every softmax attention that can be one Attention op is one.

    Args:
        model: Any ONNX model of opset 13 or later; not changed.
        options: Whether to verify, and what rows without keys mean.
    """
    with nullcontext() if options.verify else collector_paused():
        return _fuse_with_or_without_functions(model, options)


def _fuse_with_or_without_functions(model: ir.Model, options: Options) -> FuseResult:
    result, functions = _fuse(model, options, whole=False)
    if functions and any(row.status == "kept" for row in result.attentions):
        again, _ = _fuse(model, options, whole=True)
        return again if again.summary.fused > result.summary.fused else result
    return result


def _fuse(model: ir.Model, options: Options, *, whole: bool) -> tuple[FuseResult, bool]:
    """Fuses with all functions inlined, or only those that may hold attention; says whether functions are left."""
    base = prepared(model, whole=whole)
    left = bool(base.functions)
    repaired = {str(n.name) for g in graphs(base) for n in repair_rotations(g)}
    refused: dict[str, Refusal] = {}
    plain: set[str | None] = set()
    while True:
        draft = _attempt(base, options, refused, plain)
        if not (draft.written or repaired):
            rotations = describe_rotations(model, (), (), draft.unrotated, {})
            return FuseResult(model.clone(), _rows(draft, {}), rotations), left
        verified: dict[str, Verification] = {}
        if options.verify:
            from export.fuse.proof.verify import verify

            with collector_sees_new():
                failures, verified = verify(base, draft.model, draft.written, options.masked_rows)
            doubtful = {n.name for n, u in draft.upgraded.items() if u.changes and n.name in failures} - plain
            if doubtful:  # what was made of the mask is put back first
                plain |= doubtful
                continue
            if failures:
                names = {e.node.name: softmax.name for softmax, e in draft.emitted}
                refused |= {str(names.get(node, node)): refusal for node, refusal in failures.items()}
                continue
        spell_out_softmaxes(draft.model)
        shapes.clean(draft.model)
        rotated = [str(node.name) for node in draft.rotated]
        rotations = describe_rotations(draft.model, rotated, repaired, draft.unrotated, verified)
        return FuseResult(draft.model, _rows(draft, verified), rotations), left


@collector_paused()
def _attempt(base: ir.Model, options: Options, refused: dict[str, Refusal], plain: Container[str | None]) -> _Draft:
    """Fuses what can be fused in a copy of `base`, but for the blocks that were refused and the masks left plain.

    Without a verification nothing is compared with the base, and no attempt is repeated: it is not copied then.
    """
    draft, prover = _Draft(shapes.copy(base) if options.verify else base), Prover()
    forbidden = None
    try:
        raise_opset(draft.model)
    except Refusal as refusal:
        forbidden = refusal
    apply_laws(draft.model)
    common.RemoveUnusedNodesPass()(draft.model)  # what a law bypassed must not count as a reader of the scores
    draft.arrived = {
        node: dim(node.inputs[1], 1)
        for graph in graphs(draft.model)
        for node in graph
        if node.op_type == "Attention" and node.domain == ""
    }
    if forbidden is None:
        for graph in graphs(draft.model):
            rotations = fuse_rotations(graph, refused)
            draft.rotated += [r.node for r in rotations.written]
            draft.unrotated |= rotations.kept
    if draft.rotated:
        shapes.infer(draft.model)  # an op's shape is known where that of its spelling was not
    for at in range(_ROUNDS):
        more = _read_all(draft, options, refused, forbidden, prover) or (at == 0 and draft.rotated)
        if forbidden is None and (draft.emitted or draft.rotated or draft.arrived):
            draft.cached += tidy(draft.model, refused)
        if not (more and draft.kept):
            break
        shapes.clean(draft.model)  # an op tells more of what it gives than the nodes it stands for
        shapes.infer(draft.model)
    draft.kept += [_kept(node, refusal) for node, refusal in unreachable(draft.model)]
    if forbidden is None and (draft.emitted or draft.rotated or draft.arrived):
        draft.upgraded = upgrade_all(draft.model, options.masked_rows, plain)
        if any(upgrade.changes for upgrade in draft.upgraded.values()):  # a mask that is gone measured its cache
            draft.cached += absorb_all(draft.model, refused)
    return draft


def _read_all(
    draft: _Draft, options: Options, refused: dict[str, Refusal], forbidden: Refusal | None, prover: Prover
) -> int:
    """Writes every Softmax that can be fused as one op, notes why the others stay; returns how many were written."""
    written = len(draft.emitted)
    draft.kept.clear()
    for graph in graphs(draft.model):
        order = {node: at for at, node in enumerate(graph)}
        softmaxes = [node for node in order if node.op_type == "Softmax" and node.domain == ""]
        for at, node in enumerate(softmaxes):
            progress.step("fuse", at, len(softmaxes))
            try:
                if forbidden is not None:
                    raise forbidden
                if node.name and node.name in refused:
                    raise refused[node.name]
                for made in _fuse_one(node, order, options, prover):
                    draft.emitted.append((node, made))
            except Refusal as refusal:
                draft.kept.append(_kept(node, refusal))
        progress.step("fuse", len(softmaxes), len(softmaxes))
        if any(e.node.graph is graph and len(e.node.outputs) > 1 for _, e in draft.emitted):
            graph.sort()  # what reads the weights may stand before the product whose place the op took
    return len(draft.emitted) - written


def _fuse_one(softmax: ir.Node, order: Mapping[ir.Node, int], options: Options, prover: Prover) -> Iterator[Emitted]:
    scores_value = softmax.inputs[0] if softmax.inputs else None
    if scores_value is None:
        raise Refusal("K199", f"Softmax '{softmax.name}' has no input.")
    scores = read_scores(scores_value, Walk(axis_from_right(softmax, -1)))
    ways = follow(softmax, scores.layout)
    blocks = [Block(softmax, *settle(softmax, scores, weights), order) for weights in ways]
    for block, agreed in [(block, agree(block)) for block in blocks]:  # all of them, before the first is written
        yield emit(block, agreed, options.masked_rows, prover)


def _kept(softmax: ir.Node, refusal: Refusal) -> Attention:
    return Attention(
        name=softmax.name or "",
        status="kept",
        code=refusal.code,
        reason=refusal.sentence,
        op="Softmax",
        source=source_line(softmax),
        block=module_path(softmax),
        change=rule(refusal.code).change,
    )


def _rows(draft: _Draft, verified: dict[str, Verification]) -> tuple[Attention, ...]:
    """Rows in graph order: fused and already ones where they stand, the kept ones last."""
    emitted = {e.node: e for _, e in draft.emitted}
    rows = []
    for graph in graphs(draft.model):
        for node in graph:
            made, upgrade = emitted.get(node), draft.upgraded.get(node, Upgrade())
            verification = verified.get(str(node.name))
            turned = unread(node, draft.unrotated) if node.op_type == "Attention" else []
            if made is not None:
                reason = "; ".join(
                    ["Softmax attention became one op", *upgrade.changes, *_empty_rows(made, upgrade), *turned]
                )
                rows.append(describe(node, "fused", "F001", f"{reason}.", upgrade, made, verification))
            elif (node.domain, node.op_type) in _ALREADY:
                changes = draft.changes(node)
                code = "A002" if changes else "A001"
                reason = "; ".join(["It was one attention op on arrival", *changes, *turned])
                rows.append(describe(node, "already", code, f"{reason}.", upgrade, verification=verification))
    return (*rows, *draft.kept)


def _empty_rows(made: Emitted, upgrade: Upgrade) -> list[str]:
    if made.mask == "none" or upgrade.sees:
        return []
    gives = "zero (mean of V before)" if upgrade.zeroed else made.masked_rows
    return [f"a row without keys gives {gives}"]
