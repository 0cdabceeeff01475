"""Every spelling of attention through torch's exporters: one op with the right facts, or the code it stays with.

What came out is run on ONNX Runtime at sizes the export has not seen, against PyTorch itself. TorchScript takes each
spelling alone; the dynamo exporter, which is slow, takes many as one module.
"""

import numpy as np
import onnx_ir as ir
import pytest
from exported import SHAPES, SIZES, Many, arguments, draw, export
from spelling import Spelling
from spellings import ALL, KEPT
from text_graphs import serialised, session
from torch import Tensor

from export.fuse import Attention, FuseResult, Options, fuse

UNSEEN = {"B": 3, "S": 4, "T": 9}


@pytest.mark.parametrize("spelling", ALL, ids=lambda s: s.name)
def test_torchscript(spelling: Spelling) -> None:
    module, names = spelling.module(), arguments(spelling)
    result = fuse(export(module, draw(names, SIZES, half=spelling.half), "torchscript", 17))
    assert_expected(spelling, list(result.attentions))
    assert serialised(fuse(result.model, Options(verify=False)).model) == serialised(result.model)
    run = session(result.model)
    for sizes in (SIZES, SIZES if spelling.fixed else UNSEEN):
        inputs = draw(names, sizes, half=spelling.half, seed=1)
        assert_close(spelling, module(*inputs.values()), run({n: t.numpy() for n, t in inputs.items()}))


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("often", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["often", "rest"])
def test_dynamo(often: bool, opset: int) -> None:
    spellings = [s for s in ALL if s.dynamo == often]
    many = Many(spellings)
    result = fuse(export(many, draw(list(SHAPES), SIZES), "dynamo", opset))
    for at, spelling in enumerate(spellings):
        assert_expected(spelling, rows_behind(result, at), opset)
    assert serialised(fuse(result.model, Options(verify=False)).model) == serialised(result.model)
    run = session(result.model)
    for sizes in (SIZES, UNSEEN):
        inputs = draw(list(SHAPES), sizes, seed=1)
        found = run({n: t.numpy() for n, t in inputs.items()})
        for spelling, want, have in zip(spellings, many(**inputs), found, strict=True):
            assert_close(spelling, want, [have])


def test_the_rows_name_the_users_lines() -> None:
    (chosen,) = (s for s in ALL if s.name == "CausalBuffer")
    result = fuse(export(chosen.module(), draw(arguments(chosen), SIZES), "dynamo", 18))
    (row,) = result.attentions
    assert row.source is not None and "spellings_of_scores.py:" in row.source
    assert row.source.endswith("in forward: return F.softmax(scores, dim=-1) @ v")


def test_what_stays_is_listed_and_nothing_else() -> None:
    assert {s.name: s.expect for s in ALL if s.expect != "fused"} == KEPT
    assert len(ALL) >= 28 + len(KEPT)
    assert 3 * sum(s.dynamo for s in ALL) >= len(ALL)


def assert_expected(spelling: Spelling, rows: list[Attention], opset: int = 0) -> None:
    """Checks the rows of one spelling; `opset` is given where the dynamo exporter wrote the graph."""
    reasons = [f"{row.code}: {row.reason}" for row in rows]
    if spelling.expect == "nothing":
        assert rows == [], (spelling.name, reasons)
    elif spelling.expect != "fused":
        assert [row.code for row in rows] == [spelling.expect], (spelling.name, reasons)
    elif spelling.library and opset >= 23:
        assert [row.status for row in rows] == ["already"], (spelling.name, reasons)
    else:
        assert [row.status for row in rows] == ["fused"], (spelling.name, reasons)
        (row,) = rows
        # the sizes of the example hide that the keys of the library's module are padded
        mask = "padding" if spelling.fixed and spelling.library and opset else spelling.mask
        if opset and spelling.traced:
            mask = spelling.traced
        facts = (row.mask, row.softcap, row.kv_heads, row.rope)
        assert facts == (mask, spelling.softcap, spelling.kv_heads, spelling.rope), spelling.name
        assert row.scale == pytest.approx(spelling.scale, rel=1e-3 if spelling.half else 1e-6), spelling.name
        assert row.verify is not None and row.verify.cases >= 3, spelling.name


def rows_behind(result: FuseResult, output: int) -> list[Attention]:
    """The rows of the nodes that one output depends on."""
    rows = {row.name: row for row in result.attentions}
    waiting: list[ir.Value | None] = [result.model.graph.outputs[output]]
    seen: dict[ir.Node, None] = {}
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in seen:
            seen[node] = None
            waiting.extend(node.inputs)
    return [rows[str(node.name)] for node in seen if node.name in rows]


def assert_close(spelling: Spelling, want: Tensor | tuple[Tensor, ...], have: list[np.ndarray]) -> None:
    """A row without keys may be NaN in PyTorch and 0 from the op; its report says so."""
    tolerance = 3e-3 if spelling.half else 2e-5
    for expected, found in zip(want if isinstance(want, tuple) else (want,), have, strict=True):
        numbers = expected.detach().numpy()
        numbers = np.where(np.isnan(numbers) & (found == 0), 0, numbers)
        np.testing.assert_allclose(found, numbers, rtol=tolerance, atol=tolerance, err_msg=spelling.name)
