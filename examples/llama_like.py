"""A decoder as LLaMA is one: 12 layers, hidden size 768, 12 query and 4 key/value heads, RoPE, causal; random weights.

    python -m export build examples/llama_like.py:make --sm 80,86,89,120 --dtype fp16 --require 12

Attention is written out, as most published decoders have it: nothing here knows what will become of it.
"""

import torch
from torch import Tensor, nn

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 768, 12, 4, 2048, 32000


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x [batch, heads, length, size] with its halves rotated by angles [length, size], in float32."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class SelfAttention(nn.Module):
    """Causal attention in which three query heads share a key/value head."""

    def __init__(self, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, hidden // heads
        self.query = nn.Linear(hidden, heads * self.size, bias=False)
        self.key = nn.Linear(hidden, kv_heads * self.size, bias=False)
        self.value = nn.Linear(hidden, kv_heads * self.size, bias=False)
        self.out = nn.Linear(heads * self.size, hidden, bias=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        """Returns [batch, heads, length, size] from [batch, length, heads * size]."""
        return x.view(x.shape[0], x.shape[1], heads, self.size).transpose(1, 2)

    def repeat(self, x: Tensor) -> Tensor:
        """Returns key/value heads [batch, kv heads, length, size] repeated to the number of query heads."""
        batch, heads, length, size = x.shape
        x = x[:, :, None].expand(batch, heads, self.heads // heads, length, size)
        return x.reshape(batch, self.heads, length, size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hidden_keys: Tensor) -> Tensor:
        """Returns [batch, length, hidden]; `hidden_keys` [length, length] is True where a query must not look."""
        query = rotate(self.split(self.query(x), self.heads), cos, sin)
        key = self.repeat(rotate(self.split(self.key(x), self.kv_heads), cos, sin))
        value = self.repeat(self.split(self.value(x), self.kv_heads))
        scores = (query @ key.transpose(-1, -2) / self.size**0.5).masked_fill(hidden_keys, float("-inf"))
        weights = torch.softmax(scores.float(), dim=-1).to(x.dtype)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


class DecoderLayer(nn.Module):
    """Attention and a gated feed-forward net, each with a norm before it and its residual."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, feed_forward: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.attention = SelfAttention(hidden, heads, kv_heads)
        self.forward_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.gate = nn.Linear(hidden, feed_forward, bias=False)
        self.up = nn.Linear(hidden, feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hidden_keys: Tensor) -> Tensor:
        """Returns [batch, length, hidden]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, hidden_keys)
        normed = self.forward_norm(x)
        return x + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    """Token embeddings, the layers, and the logits of the next token."""

    def __init__(
        self,
        layers: int,
        hidden: int = HIDDEN,
        heads: int = HEADS,
        kv_heads: int = KV_HEADS,
        feed_forward: int = FEED_FORWARD,
        vocabulary: int = VOCABULARY,
    ) -> None:
        super().__init__()
        self.size = hidden // heads
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(DecoderLayer(hidden, heads, kv_heads, feed_forward) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-5)
        self.head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the logits [batch, vocabulary] of the token after the last; `input_ids` is int64 [batch, length]."""
        return self.head(self.norm(self.hidden(input_ids)[:, -1]))

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Returns what the last layer makes of each token, [batch, length, hidden]."""
        x = self.tokens(input_ids)
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        speeds = 10000.0 ** (-torch.arange(0, self.size, 2, device=input_ids.device).float() / self.size)
        angles = (place[:, None].float() * speeds).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        hidden_keys = place[None, :] > place[:, None]
        for layer in self.layers:
            x = layer(x, cos, sin, hidden_keys)
        return x


def make(
    layers: int = 12, hidden: int = HIDDEN, feed_forward: int = FEED_FORWARD, vocabulary: int = VOCABULARY
) -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns the decoder, example inputs, and the range of each axis that varies."""
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=1, max=2048)
    inputs = {"input_ids": torch.randint(vocabulary, (2, 128))}
    model = Decoder(layers, hidden, feed_forward=feed_forward, vocabulary=vocabulary).eval()
    return model, inputs, {"input_ids": {0: batch, 1: length}}


def make_small() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns two layers a quarter as wide: for a first try, and for tests."""
    return make(layers=2, hidden=HIDDEN // 4, feed_forward=FEED_FORWARD // 4, vocabulary=1000)
