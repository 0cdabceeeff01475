"""Every spelling of a rotary embedding through torch's exporters: one op, or the code it stays with, never another map.

What came out is run at sizes the export has not seen, against PyTorch, with the verification off: it is a net below the
reader, not a part of it.
"""

import collections

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exported import SIZES, draw, export
from spellings_of_rotations import ALL, Turning, halves, halves_by_the_tables_of_pairs
from text_graphs import session
from torch import Tensor, nn

from export.fuse import FuseResult, Options, fuse

UNSEEN = {"B": 3, "S": 4, "T": 9}
ONE = {"B": 1, "S": 1, "T": 2}


class Together(nn.Module):
    """Many spellings side by side, each on inputs a little different."""

    def __init__(self, spellings: list[Turning]) -> None:
        super().__init__()
        self.spellings = spellings
        self.made = nn.ModuleList(s.module() for s in spellings)

    def forward(self, q, k, x, p) -> tuple[Tensor, ...]:
        given = {"q": q, "k": k, "x": x, "p": p}
        results: list[Tensor] = []
        for at, (spelling, module) in enumerate(zip(self.spellings, self.made, strict=True)):
            taken = [given[n] + 0.01 * at if n in "qx" else given[n] for n in arguments(spelling)]
            found = module(*(t.half() if spelling.half and t.is_floating_point() else t for t in taken))
            results += found if isinstance(found, tuple) else (found,)
        return tuple(results)


def arguments(spelling: Turning) -> list[str]:
    import inspect

    return list(inspect.signature(spelling.module().forward).parameters)


def codes(result: FuseResult) -> list[str]:
    return sorted(row.code for row in result.rotations)


@pytest.mark.parametrize("spelling", [s for s in ALL if s.only != "dynamo"], ids=lambda s: s.name)
def test_torchscript(spelling: Turning) -> None:
    module, names = spelling.module(), arguments(spelling)
    model = export(module, draw(names, SIZES, half=spelling.half), "torchscript", 17)
    result = fuse(model, Options(verify=False))
    assert codes(result) == sorted(spelling.codes), [row.reason for row in result.rotations]
    run = session(result.model)
    for sizes in (SIZES, UNSEEN, ONE):
        inputs = draw(names, sizes, half=spelling.half, seed=1)
        compare(spelling, module(*inputs.values()), run({n: t.numpy() for n, t in inputs.items()}))
    assert codes(fuse(model)) == codes(result)  # the verification puts nothing back


@pytest.mark.parametrize("opset", [18, pytest.param(23, marks=pytest.mark.slow)])
def test_dynamo(opset: int) -> None:
    together = Together(ALL)
    names = ["q", "k", "x", "p"]
    result = fuse(export(together, draw(names, SIZES), "dynamo", opset), Options(verify=False))
    wanted = collections.Counter(code for s in ALL for code in s.codes)
    found = collections.Counter(codes(result))
    written = found.pop("R002", 0)  # by PyTorch itself
    assert written == (2 if opset == 23 else 0)
    found["R001"] += written
    assert found == wanted, [(row.code, row.source, row.reason) for row in result.rotations if row.status == "kept"]
    run = session(result.model)
    for sizes in (SIZES, UNSEEN):
        inputs = draw(names, sizes, seed=1)
        want, have = together(**inputs), run({n: t.numpy() for n, t in inputs.items()})
        at = 0
        for spelling in ALL:
            count = 2 if len(spelling.codes) == 2 and "picture" not in spelling.name else 1
            compare(spelling, want[at : at + count], have[at : at + count])
            at += count
        assert at == len(want)


def compare(spelling: Turning, want: Tensor | tuple[Tensor, ...], have: list[np.ndarray]) -> None:
    tolerance = 3e-3 if spelling.half else 2e-5
    for expected, found in zip(want if isinstance(want, tuple) else (want,), have, strict=True):
        wanted = expected.detach().numpy()
        assert wanted.dtype == found.dtype
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance, err_msg=spelling.name)


@pytest.mark.parametrize("spelling", [s for s in ALL if s.half], ids=lambda s: s.name)
def test_the_precision_stays(spelling: Turning) -> None:
    """Tables are computed in float32; what was turned in float32 still is."""
    names = arguments(spelling)
    result = fuse(export(spelling.module(), draw(names, SIZES, half=True), "torchscript", 17), Options(verify=False))
    (node,) = (n for n in result.model.graph if n.op_type == "RotaryEmbedding")
    wanted = ir.DataType.FLOAT16 if spelling.name == "tables_cast_to_half" else ir.DataType.FLOAT
    assert {v.dtype for v in node.inputs if v is not None} == {wanted}
    (angles,) = {n.inputs[0] for n in result.model.graph if n.op_type in ("Cos", "Sin")}
    assert angles is not None and angles.dtype == ir.DataType.FLOAT


def test_tables_are_computed_once() -> None:
    (chosen,) = (s for s in ALL if s.name == "a_product_of_positions_for_q_and_k")
    model = export(chosen.module(), draw(arguments(chosen), SIZES), "dynamo", 18)
    result = fuse(model, Options(verify=False))
    first, second = (n for n in result.model.graph if n.op_type == "RotaryEmbedding")
    assert first.inputs[1:3] == second.inputs[1:3]
    assert [sum(n.op_type == op for n in result.model.graph) for op in ("Cos", "Sin", "MatMul")] == [1, 1, 1]
    assert not [n for n in result.model.graph if n.op_type == "Concat" and 8 in (n.outputs[0].shape or ())]


class Attends(nn.Module):
    def __init__(self, turn) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, q, k):
        keys = self.turn(k[:, :, :1] * q).transpose(-1, -2)
        return torch.softmax(self.turn(q) @ keys, dim=-1) @ q


@pytest.mark.parametrize("turn", [halves, halves_by_the_tables_of_pairs], ids=lambda f: f.__name__)
def test_an_attention_says_which_rotation_stays(turn) -> None:
    (row,) = fuse(export(Attends(turn), draw(["q", "k"], SIZES), "torchscript", 17)).attentions
    assert row.status == "fused"
    assert row.rope == ("qk" if turn is halves else "none")
    assert ("the rotation of Q and K stays as it is: R101 at Add" in row.reason) == (turn is not halves)
