"""An encoder as BERT is one: 12 layers, hidden size 768, 12 heads, a padding mask; random weights.

    python -m export build examples/bert_like.py:make --sm 80,86,89,120 --dtype fp16 --require 12

Attention is written out, as most published encoders have it: nothing here knows what will become of it.
"""

import torch
from torch import Tensor, nn

HIDDEN, HEADS, POSITIONS, VOCABULARY = 768, 12, 512, 30522


class SelfAttention(nn.Module):
    """Multi-head attention over the tokens that are not padding."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def split(self, x: Tensor) -> Tensor:
        """Returns [batch, heads, length, size] from [batch, length, hidden]."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Returns [batch, length, hidden]; `bias` [batch, 1, 1, length] is added to the scores."""
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(-1, -2) / self.size**0.5 + bias
        context = torch.softmax(scores, dim=-1) @ value
        return self.out(context.transpose(1, 2).reshape(x.shape))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward net, each with its residual and a norm after it."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)
        self.output_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Returns [batch, length, hidden]."""
        x = self.attention_norm(x + self.attention(x, bias))
        return self.output_norm(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token and position embeddings, then the layers."""

    def __init__(self, layers: int, hidden: int = HIDDEN, heads: int = HEADS, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(POSITIONS, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.layers = nn.ModuleList(EncoderLayer(hidden, heads) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the hidden states [batch, length, hidden].

        Args:
            input_ids: int64 [batch, length], at most 512 long.
            attention_mask: bool [batch, length], True where a token is none of the padding.
        """
        x = self.norm(self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]])
        bias = torch.zeros_like(attention_mask, dtype=x.dtype).masked_fill(~attention_mask, torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, bias[:, None, None, :])
        return x


def make(
    layers: int = 12, hidden: int = HIDDEN, vocabulary: int = VOCABULARY
) -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns the encoder, example inputs with padding, and the range of each axis that varies."""
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=1, max=POSITIONS)
    keep = torch.ones(2, 128, dtype=torch.bool)
    keep[1, 100:] = False
    inputs = {"input_ids": torch.randint(vocabulary, (2, 128)), "attention_mask": keep}
    model = Encoder(layers, hidden, vocabulary=vocabulary).eval()
    return model, inputs, {name: {0: batch, 1: length} for name in inputs}


def make_small() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns two layers a quarter as wide: for a first try, and for tests."""
    return make(layers=2, hidden=HIDDEN // 4, vocabulary=1000)
