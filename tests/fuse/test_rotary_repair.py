"""A RotaryEmbedding that runs at batch 1 only, as PyTorch's exporter writes it, holds at every batch afterwards."""

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exported import unheard
from onnx.reference import ReferenceEvaluator
from text_graphs import parse, session
from torch import nn

from export.fuse import FuseResult, fuse
from export.fuse.rotary_embedding.repair import repair_rotations
from export.graph import shapes

HEAD = '<ir_version: 10, opset_import: ["": 23]>\n'
RNG = np.random.default_rng(0)


class Rotary(nn.Module):
    """The usual embedding of positions: tables of batch 1, half or all of the channels turned."""

    def __init__(self, turned: int) -> None:
        super().__init__()
        self.turned = turned
        self.register_buffer("inverse", 100.0 ** -(torch.arange(0, turned, 2) / turned))
        self.q, self.k = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1])[None].float()
        angles = (self.inverse[None, :, None] @ positions[:, None, :]).transpose(1, 2)
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos().unsqueeze(1), both.sin().unsqueeze(1)
        q, k = (f(x).view(*x.shape[:2], -1, 8).transpose(1, 2) for f in (self.q, self.k))
        q, k = (self._turn(y, cos, sin) for y in (q, k))
        return (q @ k.repeat_interleave(2, dim=1).transpose(-1, -2)).softmax(-1) @ k.repeat_interleave(2, dim=1)

    def _turn(self, y: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        part, rest = y[..., : self.turned], y[..., self.turned :]
        half = self.turned // 2
        turned = part * cos + torch.cat((-part[..., half:], part[..., :half]), dim=-1) * sin
        return torch.cat((turned, rest), dim=-1) if self.turned < 8 else turned


@pytest.fixture(scope="module", params=[8, 4], ids=["all channels", "half of them"])
def exported(request: pytest.FixtureRequest) -> tuple[nn.Module, ir.Model]:
    torch.manual_seed(0)
    module = Rotary(request.param).eval()
    sizes = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=2)}
    with unheard(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module, (torch.randn(2, 5, 32),), dynamo=True, opset_version=23, verbose=False, dynamic_shapes=(sizes,)
        )
    return module, program.model


def runs(model: ir.Model, x: np.ndarray) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    loaded = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        loaded.run(None, {loaded.get_inputs()[0].name: x})
    except Exception:
        return False
    return True


def test_what_the_exporter_writes_at_opset_23_is_repaired(exported: tuple[nn.Module, ir.Model]) -> None:
    module, model = exported
    inputs = {batch: torch.randn(batch, 7, 32) for batch in (1, 2, 3)}
    # when this fails PyTorch repaired it; the law stays for the files that are out there
    assert [runs(model, x.numpy()) for x in inputs.values()] == [True, False, False]
    result = fuse(model)
    assert [(r.code, r.status, r.pairing, r.width) for r in result.rotations] == [
        ("R003", "repaired", "half", module.turned)
    ] * 2
    (row,) = result.attentions
    assert (row.status, row.rope) == ("fused", "qk")
    for x in inputs.values():
        assert runs(result.model, x.numpy())
        (have,) = session(result.model)({model.graph.inputs[0].name: x.numpy()})
        np.testing.assert_allclose(have, module(x).detach().numpy(), rtol=2e-5, atol=2e-5)


def test_q_and_k_share_what_the_exporter_computed_for_each(exported: tuple[nn.Module, ir.Model]) -> None:
    before, after = exported[1], fuse(exported[1]).model
    assert [sum(n.op_type == op for n in before.graph) for op in ("Cos", "Sin")] == [2, 2]
    assert [sum(n.op_type == op for n in after.graph) for op in ("Cos", "Sin", "Expand")][:2] == [1, 1]
    first, second = (n for n in after.graph if n.op_type == "RotaryEmbedding")
    assert (first.inputs[1], first.inputs[2]) == (second.inputs[1], second.inputs[2])


ONE_ROW = {
    "tables": """float[B,4,S,8] x, float[1,S,4] c, float[1,S,4] s) => (float[B,4,S,8] y) {
        y = RotaryEmbedding(x, c, s) }""",
    "three axes": """float[B,S,32] x, float[1,S,4] c, float[1,S,4] s) => (float[B,S,32] y) {
        y = RotaryEmbedding<num_heads = 4, interleaved = 1>(x, c, s) }""",
    "positions": """float[B,4,S,8] x, float[P,4] c, float[P,4] s, int64[1,S] p) => (float[B,4,S,8] y) {
        y = RotaryEmbedding(x, c, s, p) }""",
    "only the sine": """float[B,4,S,8] x, float[B,S,4] c, float[1,S,4] s) => (float[B,4,S,8] y) {
        y = RotaryEmbedding<interleaved = 1>(x, c, s) }""",
}


def feeds(model: ir.Model, batch: int) -> dict[str, np.ndarray]:
    sizes = {"B": batch, "S": 5, "P": 6}
    drawn = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
        whole = value.dtype == ir.DataType.INT64
        drawn[str(value.name)] = RNG.integers(0, 6, shape) if whole else RNG.standard_normal(shape).astype(np.float32)
    return drawn


@pytest.mark.parametrize("name", ONE_ROW)
def test_each_form_of_one_row_holds_at_every_batch(name: str) -> None:
    model = parse(f"{HEAD} g ({ONE_ROW[name]}")
    result = fuse(model)
    assert [r.code for r in result.rotations] == ["R003"]
    onnx.checker.check_model(ir.to_proto(result.model))
    for batch in (1, 2, 3):
        given = feeds(model, batch)
        short = {n for n, a in given.items() if n != "x" and a.shape[0] == 1}
        rows = {n: np.repeat(a, batch, axis=0) if n in short else a for n, a in given.items()}
        (want,) = ReferenceEvaluator(ir.to_proto(model)).run(None, rows)
        for found in (session(result.model)(given), ReferenceEvaluator(ir.to_proto(result.model)).run(None, given)):
            np.testing.assert_allclose(found[0], want, rtol=1e-6, atol=1e-6)
    assert twice(result) == [["R002"], True]


def twice(result: FuseResult) -> list[object]:
    again = fuse(result.model)
    same = ir.to_proto(again.model).SerializeToString() == ir.to_proto(result.model).SerializeToString()
    return [[r.code for r in again.rotations], same]


RIGHT = {
    "every row": """float[B,4,S,8] x, float[B,S,4] c, float[B,S,4] s) => (float[B,4,S,8] y) {
        y = RotaryEmbedding(x, c, s) }""",
    "batch 1": """float[1,4,S,8] x, float[1,S,4] c, float[1,S,4] s) => (float[1,4,S,8] y) {
        y = RotaryEmbedding(x, c, s) }""",
    "positions of every row": """float[B,4,S,8] x, float[1,4] c, float[1,4] s, int64[B,S] p) => (float[B,4,S,8] y) {
        y = RotaryEmbedding(x, c, s, p) }""",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_changed(name: str) -> None:
    model = parse(f"{HEAD} g ({RIGHT[name]}")
    before = ir.to_proto(model).SerializeToString()
    changed = model.clone()
    shapes.infer(changed)
    assert repair_rotations(changed.graph) == []
    result = fuse(model)
    assert [(r.code, r.status) for r in result.rotations] == [("R002", "already")]
    assert ir.to_proto(result.model).SerializeToString() == before
