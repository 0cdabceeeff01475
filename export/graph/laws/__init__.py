"""The laws: meaning-preserving rewrites of the whole graph, applied until none changes anything."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from export.graph import shapes
from export.graph.laws.branches import choose_branch
from export.graph.laws.casts import name_types
from export.graph.laws.detours import add_outside
from export.graph.laws.dimensions import detach_shapes, settle_expand
from export.graph.laws.einsum import spell_out_einsum
from export.graph.laws.fold import fold
from export.graph.laws.layout import turn_outside
from export.graph.laws.levels import select_levels
from export.graph.laws.noops import drop_noops, join_reshapes, join_transposes
from export.graph.laws.scatter import assemble
from export.graph.laws.sink import sink_scales
from export.graph.laws.softmax import spell_out_softmax, spell_softmax
from export.graph.values import graphs

_CONSTANTS = (fold, settle_expand, choose_branch)
_SPELLINGS = (spell_out_einsum, spell_softmax, select_levels, sink_scales)
_LAYOUTS = (drop_noops, add_outside, join_reshapes, assemble, turn_outside, join_transposes)
_LAWS = (*_CONSTANTS, name_types, detach_shapes, *_SPELLINGS, *_LAYOUTS)
_ROUNDS = 6
"""Folding one constant lets shapes be inferred that let the next be folded; real graphs settle within three rounds."""


def apply_laws(model: ir.Model) -> None:
    """Applies every law to every graph of `model` in place; shapes are inferred on entry and kept up to date."""
    _settle(model, _LAWS)


def fold_all(model: ir.Model) -> None:
    """Applies the laws about constants and shapes alone, and removes what led to them."""
    _settle(model, _CONSTANTS, common.RemoveUnusedNodesPass())


def spell_softmaxes(model: ir.Model) -> None:
    """Applies the law about softmaxes written by hand alone: they overflow where the op does not."""
    if sum(spell_softmax(graph) for graph in graphs(model)):
        shapes.infer(model)


def spell_out_softmaxes(model: ir.Model) -> None:
    """Takes that law back for each Softmax that is left and could overflow as it was written."""
    for graph in graphs(model):
        for node in list(graph):
            if node.op_type == "Softmax" and node.domain == "":
                spell_out_softmax(node)


def _settle(
    model: ir.Model, laws: tuple[Callable[[ir.Graph], int], ...], sweep: Callable[[ir.Model], object] = lambda _: None
) -> None:
    for _ in range(_ROUNDS):
        if not sum(law(graph) for graph in graphs(model) for law in laws):
            return
        sweep(model)
        shapes.infer(model)
