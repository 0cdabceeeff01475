"""The check that follows every export: its bound is derived, and a wrong graph fails it."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from export.capture import check, of_module, opset, sizes
from export.capture.exporting import capture
from export.capture.precision import to_dtype
from export.capture.runnable import session, widened
from export.errors import CaptureError, UsageError


class Scores(nn.Module):
    """softmax(x W x^T / 2) x."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.proj(x) @ x.transpose(1, 2) / 2).softmax(-1) @ x


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return of_module("scores", Scores(), (torch.randn(2, 7, 4),))


@pytest.fixture(scope="module")
def exported(source):
    return capture(source, exporter="torchscript")


def broken(captured, change):
    model = captured.model.clone()
    change(model.graph)
    return replace(captured, model=model)


def judged(captured, source, dtype: str = "fp32") -> list[str]:
    runs, _ = check.module_runs(source, to_dtype(source.module, dtype), dtype)
    return check.compared(captured, runs, dtype)


def test_the_bound_is_twice_the_modules_own_error_and_four_ulps() -> None:
    exact = np.array([1.0, -3.0, np.inf])
    own = np.array([1.0 + 2**-20, -3.0, np.inf])
    assert check.bound(own, exact, "fp32") == 2 * 2**-20 + 4 * 2**-22  # the spacing at 3 is 2 ** -22
    assert check.bound(exact, exact, "fp16") == 4 * 2**-9
    assert check.bound(np.zeros(2), np.zeros(2), "bf16") == 4 * 2.0**-133


def test_what_differs_is_said() -> None:
    one = np.ones(4)
    assert check.difference(one, one, one, "fp32") is None
    assert "has the shape (2,)" in check.difference(np.ones(2), one, one, "fp32")
    off = np.array([1, 1, 1.001, 1])
    assert "is off by 0.001 at [2]" in check.difference(off, one, one, "fp32")
    assert check.difference(off, one, one, "fp16") is None  # 4 ulp of fp16 at 1 are 0.0039
    assert "not finite in 1 places" in check.difference(np.array([1, np.nan, 1, 1]), one, one, "fp32")
    nan = np.array([np.nan, 1])
    assert check.difference(nan, nan, nan, "fp32") is None
    kept, ids = np.array([True, False]), np.array([3, 4])
    assert check.difference(kept, kept, kept, "fp16") is None
    assert check.difference(ids, ids, np.array([3, 5]), "fp16") is None  # the module itself picks another index
    assert "differs in 2 of 2 values" in check.difference(ids[::-1], ids, ids, "fp32")


def test_a_right_graph_passes_at_three_shapes(exported, source) -> None:
    assert judged(exported, source) == []
    runs, notes = check.module_runs(source, source.module, "fp32")
    shapes = [tuple(run.inputs["x"].shape) for run in runs]
    assert len(set(shapes)) == 3 and shapes[0] == (2, 7, 4) and 1 in [s[0] for s in shapes] and notes == []


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_wrong_scale_fails(source, exporter: str) -> None:
    def halve(graph: ir.Graph) -> None:
        node = next(n for n in graph if n.op_type == "Softmax")
        made = ir.node("Mul", [node.inputs[0], half(graph)])
        graph.insert_before(node, made)
        node.replace_input_with(0, made.outputs[0])

    def half(graph: ir.Graph) -> ir.Value:
        made = ir.node("Constant", [], {"value": ir.tensor(np.float32(0.5))})
        graph.insert_before(next(iter(graph)), made)
        return made.outputs[0]

    with pytest.raises(CaptureError, match=r"is not the module: output `output` at batch=2, length=7 is off by"):
        judged(broken(capture(source, exporter=exporter), halve), source)


def test_a_frozen_batch_fails(exported, source) -> None:
    def freeze(graph: ir.Graph) -> None:
        output = graph.outputs[0]
        shape = ir.node("Constant", [], {"value": ir.tensor(np.array([2, -1, 4]))})
        made = ir.node("Reshape", [output, shape.outputs[0]])
        graph.extend([shape, made])
        made.outputs[0].name, output.name = "output", "inner"
        made.outputs[0].type = output.type
        graph.outputs[0] = made.outputs[0]

    with pytest.raises(CaptureError, match=r"refuses it at batch=5|has the shape"):
        judged(broken(exported, freeze), source)


def test_a_widened_copy_computes_in_fp32_with_the_rounded_weights(source) -> None:
    model = capture(source, dtype="bf16", exporter="torchscript").model
    wide = widened(model)
    types = {v.dtype for v in wide.graph.initializers.values()} | {v.dtype for v in wide.graph.inputs}
    assert types <= {ir.DataType.FLOAT, ir.DataType.INT64}
    weight = source.module.proj.bias.detach().bfloat16().float().numpy()
    assert any(np.array_equal(v.const_value.numpy(), weight) for v in wide.graph.initializers.values())
    x = torch.randn(2, 3, 4).bfloat16().float()
    (made,) = session(wide).run(None, {"x": x.numpy()})
    assert np.abs(made - to_dtype(source.module, "bf16").float()(x).numpy()).max() < 1e-5


def test_three_shapes_cover_every_dimension_or_say_why_not() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table(torch.arange(x.shape[1]))

    limited = of_module("table", Table(), (torch.randn(2, 5, 4),))
    chosen = sizes.three(limited)
    assert len(chosen) == 3 and {one["length"] for one in chosen} != {5} and max(one["length"] for one in chosen) == 5


def test_drawn_inputs_hide_a_tail_where_the_example_hides_nothing(source) -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return x.masked_fill(~mask[..., None], 0) + ids[..., None]

    mask, ids = torch.ones(2, 6, dtype=torch.bool), torch.arange(6).expand(2, 6)
    made = of_module("masked", Masked(), (torch.randn(2, 6, 4), mask, ids))
    drawn = sizes.draw(made, {"batch": 4, "length": 9}, seed=1)
    assert drawn["x"].shape == (4, 9, 4) and drawn["mask"].shape == drawn["ids"].shape == (4, 9)
    assert drawn["mask"][:, 0].all() and not drawn["mask"].all()
    assert drawn["ids"].max() == 5  # an index stays in range
    same = sizes.draw(made, {}, seed=0, magnitude=-1.0)
    assert torch.equal(same["x"], -made.inputs["x"]) and same["mask"].all()
    with pytest.raises(UsageError, match="no dimension 'width'; masked has batch, length"):
        sizes.draw(made, {"width": 3})


def test_opset_26_is_refused_because_what_is_written_is_not_26() -> None:
    source = of_module("gelu", nn.GELU(), (torch.randn(2, 7, 4),))
    with pytest.raises(CaptureError, match="asked for opset 26 and wrote opset 18"):
        capture(source, opset=26)


@pytest.mark.parametrize(("exporter", "wanted"), [("dynamo", 18), ("dynamo", 24), ("torchscript", 17)])
def test_the_opset_asked_for_is_the_opset_written(source, exporter: str, wanted: int) -> None:
    captured = capture(source, exporter=exporter, opset=wanted)
    assert captured.opset == opset.written(captured.model) == wanted


def test_opsets_and_exporters_out_of_range(source) -> None:
    assert [opset.choose(name, None) for name in ("dynamo", "torchscript")] == [23, 20]
    for exporter, wanted, words in (
        ("dynamo", 17, "18 and above"),
        ("torchscript", 23, "up to 20"),
        ("jax", 1, "dynamo, torchscript"),
    ):
        with pytest.raises(UsageError, match=words):
            capture(source, exporter=exporter, opset=wanted)


def test_an_operator_the_opset_lacks_is_named(exported) -> None:
    model = exported.model.clone()
    next(n for n in model.graph if n.op_type == "Softmax").op_type = "Attention"
    with pytest.raises(CaptureError, match="operator Attention, which opset 20 does not have"):
        opset.refuse_wrong(model, 20, "torchscript")
