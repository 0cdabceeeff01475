"""The laws: meaning-preserving rewrites of the whole graph, applied until none changes anything."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from export.graph import shapes
from export.graph.laws.branches import choose_branch
from export.graph.laws.casts import name_types
from export.graph.laws.dimensions import detach_shapes, settle_expand
from export.graph.laws.einsum import spell_out_einsum
from export.graph.laws.fold import fold
from export.graph.laws.layout import turn_outside
from export.graph.laws.noops import drop_noops, join_reshapes, join_transposes
from export.graph.laws.scatter import assemble
from export.graph.values import graphs

_CONSTANTS = (fold, settle_expand, choose_branch)
_LAWS = (
    *_CONSTANTS,
    name_types,
    detach_shapes,
    spell_out_einsum,
    drop_noops,
    join_reshapes,
    assemble,
    turn_outside,
    join_transposes,
)
_ROUNDS = 6
"""Folding one constant lets shapes be inferred that let the next be folded; real graphs settle within three rounds."""


def apply_laws(model: ir.Model) -> None:
    """Applies every law to every graph of `model` in place; shapes are inferred on entry and kept up to date."""
    _settle(model, _LAWS)


def fold_all(model: ir.Model) -> None:
    """Applies the laws about constants and shapes alone, and removes what led to them."""
    _settle(model, _CONSTANTS, common.RemoveUnusedNodesPass())


def _settle(
    model: ir.Model, laws: tuple[Callable[[ir.Graph], int], ...], sweep: Callable[[ir.Model], object] = lambda _: None
) -> None:
    for _ in range(_ROUNDS):
        if not sum(law(graph) for graph in graphs(model) for law in laws):
            return
        sweep(model)
        shapes.infer(model)
