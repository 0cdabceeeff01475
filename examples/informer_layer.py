"""An encoder layer of Informer (arXiv 2012.07436), full attention, and the distilling step behind it; random weights.

    python -m export build examples/informer_layer.py:make --sm 89,120 --dtype fp16 --require all

Heads stay behind the length, as the Time-Series-Library has them: the products are `einsum`s, nothing is transposed.
"""

import torch
from torch import Tensor, nn


class AttentionLayer(nn.Module):
    """Projections around an attention over [batch, length, heads, size]."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [batch, length, hidden]."""
        batch, length, hidden = x.shape
        query, key, value = (net(x).view(batch, length, self.heads, -1) for net in (self.query, self.key, self.value))
        scores = torch.einsum("blhe,bshe->bhls", query, key)
        weights = torch.softmax(scores / (hidden // self.heads) ** 0.5, dim=-1)
        return self.out(torch.einsum("bhls,bshd->blhd", weights, value).reshape(batch, length, hidden))


class EncoderLayer(nn.Module):
    """Attention and two convolutions of width 1, each with its residual and a norm after it."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = AttentionLayer(hidden, heads)
        self.up, self.down = nn.Conv1d(hidden, 4 * hidden, 1), nn.Conv1d(4 * hidden, hidden, 1)
        self.attention_norm, self.output_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [batch, length, hidden]."""
        x = self.attention_norm(x + self.attention(x))
        net = self.down(nn.functional.gelu(self.up(x.transpose(1, 2))))
        return self.output_norm(x + net.transpose(1, 2))


class Distilling(nn.Module):
    """Halves the length: a convolution over neighbours in time, then the larger of each pair."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.convolution, self.pool = nn.Conv1d(hidden, hidden, 3, padding=1), nn.MaxPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [batch, length // 2, hidden]."""
        return self.pool(nn.functional.elu(self.convolution(x.transpose(1, 2)))).transpose(1, 2)


def make(
    hidden: int = 512, heads: int = 8, length: int = 96
) -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns the layer and the step behind it, an example series, and the range of its batch; its length is fixed."""
    model = nn.Sequential(EncoderLayer(hidden, heads), Distilling(hidden)).eval()
    return model, {"input": torch.randn(2, length, hidden)}, {"input": {0: torch.export.Dim("batch", min=1, max=32)}}


def make_small() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns a narrow layer over a short series: for a first try, and for tests."""
    return make(hidden=32, heads=4, length=12)
