"""Half precision stays half through the TorchScript exporter, which by itself widens everything behind an attention."""

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from export.capture import capture, of_module


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads, keep[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("dtype", "written"), [("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.BFLOAT16)])
def test_sdpa_returns_the_querys_type(dtype: str, written: ir.DataType) -> None:
    inputs = (torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    captured = capture(of_module("masked", Masked().eval(), inputs), dtype=dtype, exporter="torchscript")
    (output,) = captured.model.graph.outputs
    weights = [v.const_value for v in captured.model.graph.initializers.values() if v.const_value is not None]
    assert output.dtype == written
    assert all(w.dtype == written for w in weights if w.size >= 16)


class Hot(torch.nn.Module):
    """Scores beyond fp16 beside their softmax: ONNX Runtime keeps float32 for the one and not for the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ x.transpose(-1, -2)
        return torch.cat(((scores - scores.amax(-1, keepdim=True)).softmax(-1), scores), -1)


def test_an_overflow_of_the_module_itself_is_not_taken_for_a_frozen_size() -> None:
    x = torch.randn(2, 5, 16)
    x[0] *= 150.0
    source = of_module("hot", Hot().eval(), (x,))
    assert not Hot()(x.half()).isfinite().all()
    capture(source, dtype="fp16", exporter="torchscript")  # what overflows is said where the precision is judged
