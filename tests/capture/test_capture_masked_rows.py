"""A row that sees no key under a mask of -inf is 0 in the exported graph, as it is in PyTorch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engines.runners import OrtRunner
from export import model_file
from export.capture import capture, of_module
from export.capture.precision import to_dtype
from export.capture.quiet import plain_attention
from export.capture.runnable import expanded_masks
from export.parity import check


class Padded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.layer(x, src_key_padding_mask=padding)


@pytest.mark.parametrize(("exporter", "dtype"), [("torchscript", "fp32"), ("torchscript", "fp16"), ("dynamo", "fp16")])
def test_a_padding_mask_that_hides_every_key(tmp_path, exporter: str, dtype: str) -> None:
    torch.manual_seed(0)
    module = Padded().eval()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1] = True
    inputs = (torch.randn(2, 5, 16), padding)
    captured = capture(of_module("padded", module, inputs), dtype=dtype, exporter=exporter)
    # ONNX Runtime's own operator takes no mask of one row for all queries.
    model_file.save(expanded_masks(captured.model) or captured.model, tmp_path / "m.onnx")
    at = torch.float16 if dtype == "fp16" else torch.float32
    x = inputs[0].to(at)
    (got,) = OrtRunner(tmp_path / "m.onnx", "cpu").run(captured.flatten({"x": x, "padding": padding})).values()
    with torch.no_grad(), plain_attention():
        want = to_dtype(module, dtype)(x, padding).numpy()
    assert got.dtype == want.dtype
    assert np.isfinite(want).all()
    assert np.isfinite(got).all()
    case = {"x": inputs[0], "padding": padding}
    assert check(tmp_path / "m.onnx", module, [case], dtype).passed
    other = {"x": inputs[0].flip(1), "padding": padding}
    feeds = captured.flatten({"x": other["x"].to(at), "padding": padding})
    moved = SimpleNamespace(run=lambda _: OrtRunner(tmp_path / "m.onnx", "cpu").run(feeds))
    assert not check(moved, module, [case], dtype).passed, "what it gives for other tokens is wrong"
