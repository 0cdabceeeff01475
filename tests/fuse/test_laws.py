"""Each law alone: a graph before, what it computes after, and that both mean the same on ONNX Runtime."""

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from text_graphs import Golden, assert_same, expressions, parse, read_goldens

from export.graph import laws, shapes
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
from export.graph.laws.softmax import spell_softmax

GOLDENS = read_goldens((Path(__file__).parent / "goldens" / "laws.txt").read_text())

LAWS = {
    law.__name__: law
    for law in (
        spell_out_einsum,
        name_types,
        spell_softmax,
        select_levels,
        sink_scales,
        fold,
        settle_expand,
        choose_branch,
        detach_shapes,
        drop_noops,
        join_transposes,
        join_reshapes,
        turn_outside,
        assemble,
        add_outside,
    )
}


def apply(name: str, model: ir.Model) -> ir.Model:
    """The law alone, repeated until it changes nothing, as the fuser repeats it."""
    changed = model.clone()
    shapes.infer(changed)
    for _ in range(6):
        if not LAWS[name](changed.graph):
            break
        shapes.infer(changed)
    common.RemoveUnusedNodesPass()(changed)
    return changed


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_law(golden: Golden) -> None:
    before = parse(golden.before)
    after = apply(golden.name.split(":")[0], before)
    expected = expressions(parse(golden.before).graph) if golden.after == "unchanged" else golden.after
    assert expressions(after.graph) == expected
    assert_same(before, after)


def test_every_law_has_goldens_that_change_and_that_stay() -> None:
    """A law without a golden that stays could rewrite anything; one without a golden that changes could do nothing."""
    used = {law.__name__ for law in laws._LAWS}
    assert used == set(LAWS)
    for name in used:
        mine = [g for g in GOLDENS if g.name.startswith(f"{name}:")]
        assert any(g.after != "unchanged" for g in mine), name
        assert any(g.after == "unchanged" for g in mine) or name == "join_transposes", name
