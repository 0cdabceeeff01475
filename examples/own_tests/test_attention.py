"""A test suite of one's own, with the `parity` fixture that installing attnproof brings to any pytest.

    python -m pytest examples/own_tests

Each test names what is judged, what is right, and cases. What is right is run in float64; the error that is allowed is
derived from the dtype and the case. Try it: leave out the scale below, or add the mask with the wrong sign.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """An attention one might write: [batch, heads, length, size], `attn_mask` True where a query sees a key."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(-1) @ value


class Layer(nn.Module):
    """The same with its projections, as a module whose export is judged below."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(attention(query, key, value).transpose(1, 2).reshape(batch, length, width))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_attention_is_right_at_every_dtype(parity, dtype: str) -> None:
    cases = [(drawn(2, 4, length, 16),) * 3 for length in (1, 7, 64)]
    parity(attention, scaled_dot_product_attention, cases=cases, dtype=dtype)


def test_padding_hides_keys(parity) -> None:
    keep = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    keep[1, ..., 6:] = False
    q, k, v = (drawn(2, 4, 9, 16) + i for i in range(3))
    parity(attention, scaled_dot_product_attention, cases=[(q, k, v, keep)], dtype="fp16")


@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter warns about PyTorch
def test_the_fused_graph_computes_what_the_module_does(parity, tmp_path) -> None:
    import export

    torch.manual_seed(0)
    layer, x = Layer().eval(), drawn(2, 8, 32)
    free = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamic_shapes=free, verbose=False)
    fused = export.fuse(tmp_path / "layer.onnx", tmp_path / "fused.onnx")
    assert fused.summary.fused == 1
    parity(tmp_path / "fused.onnx", layer, cases=[{"x": x}, {"x": drawn(1, 21, 32)}], dtype="fp32")
