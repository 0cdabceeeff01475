"""Blocks of a diffusion transformer (DiT, arXiv 2212.09748) with adaLN-Zero; random weights.

    python -m export build examples/dit_block.py:make --sm 89,120 --dtype fp16 --require all

Every token sees every token: there is no mask. `scaled_dot_product_attention`, with the norms of q and k before it,
becomes one operator, as an attention that is written out does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x [batch, tokens, hidden] scaled and shifted by what the condition says, [batch, hidden] each."""
    return x * (1 + scale[:, None]) + shift[:, None]


class SelfAttention(nn.Module):
    """Multi-head attention with one projection for query, key and value, and a norm over each head of q and k."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.query_norm, self.key_norm = nn.LayerNorm(self.size), nn.LayerNorm(self.size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [batch, tokens, hidden]."""
        batch, tokens, hidden = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        context = functional.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        return self.out(context.transpose(1, 2).reshape(batch, tokens, hidden))


class Block(nn.Module):
    """Attention and a feed-forward net, each normed, modulated and gated by the condition."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attention = SelfAttention(hidden, heads)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.modulation = nn.Linear(hidden, 6 * hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns [batch, tokens, hidden]; `condition` is [batch, hidden]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(functional.silu(condition)).chunk(6, dim=-1)
        x = x + gate1[:, None] * self.attention(modulate(self.norms[0](x), shift1, scale1))
        net = self.up(modulate(self.norms[1](x), shift2, scale2))
        return x + gate2[:, None] * self.down(functional.gelu(net, approximate="tanh"))


class Blocks(nn.Module):
    """Blocks that share one condition: the embedding of a time step and of what is to be drawn."""

    def __init__(self, layers: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns the patches [batch, tokens, hidden]; `condition` is [batch, hidden]."""
        for block in self.blocks:
            x = block(x, condition)
        return x


def make(
    layers: int = 2, hidden: int = 1152, heads: int = 16, tokens: int = 256
) -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns the blocks at the width of DiT-XL/2, example inputs, and the range of each axis that varies."""
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("tokens", min=1, max=4 * tokens)
    inputs = {"x": torch.randn(2, tokens, hidden), "condition": torch.randn(2, hidden)}
    return Blocks(layers, hidden, heads).eval(), inputs, {"x": {0: batch, 1: length}, "condition": {0: batch}}


def make_small() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns one narrow block: for a first try, and for tests."""
    return make(layers=1, hidden=64, heads=4, tokens=16)
