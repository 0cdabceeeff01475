"""Whole fusions of small text graphs: what each computes before, the one op after, and that both mean the same."""

from pathlib import Path

import onnx_ir as ir
import pytest
from text_graphs import Golden, assert_same, check, expressions, parse, read_goldens, serialised

from export.fuse import FuseResult, Options, fuse

FOLDER = Path(__file__).parent / "goldens"
FILES = ("scores", "weights", "rope", "sharing", "cache")


def described(result: FuseResult) -> str:
    """What came out: one line for each attention that stayed, and what the graph computes."""
    kept = [f"kept {row.code}" for row in result.attentions if row.status == "kept"]
    return "\n".join([*kept, expressions(result.model.graph)])


def goldens() -> list:
    return [
        pytest.param(golden, id=f"{file}: {golden.name}")
        for file in FILES
        for golden in read_goldens((FOLDER / f"{file}.txt").read_text())
    ]


@pytest.mark.parametrize("golden", goldens())
def test_golden(golden: Golden) -> None:
    before = parse(golden.before)
    result = fuse(before)
    assert described(result) == golden.after
    assert all(row.verify is not None and row.verify.cases >= 3 for row in result.attentions if row.status == "fused")
    check(result.model)
    assert_same(before, result.model)
    # verification is a net below the reader, not a part of it: on these graphs it has nothing to put back
    assert serialised(fuse(before, Options(verify=False)).model) == serialised(result.model)
    assert serialised(fuse(result.model, Options(verify=False)).model) == serialised(result.model)


def test_a_golden_names_no_case_twice() -> None:
    for file in FILES:
        names = [g.name for g in read_goldens((FOLDER / f"{file}.txt").read_text())]
        assert len(names) == len(set(names)), file
    assert isinstance(parse("g (float[B] x) => (float[B] y) { y = Neg(x) }"), ir.Model)
