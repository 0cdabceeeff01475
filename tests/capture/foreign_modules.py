"""Modules nobody wrote for this toolkit, as factories: what a user brings."""

import torch
from torch import nn
from torch.nn import functional as F


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(x, x, x, need_weights=True)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.attention(query, key, value, need_weights=False)[0]


class Keywords(nn.Module):
    """Optional, keyword-only and constant arguments, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(16, 16)

    def forward(self, x, mask=None, bias=None, *, scale=None, causal=False):
        scores = self.proj(x) @ x.transpose(1, 2)
        scores = scores * scale if scale is not None else scores / 4
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        if causal:
            length = x.shape[1]
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        return {"attended": scores.softmax(-1) @ x, "x": x, "nothing": None}


class Cached(nn.Module):
    """past_key_values as transformers nests them, and a mask over past and present."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16)

    def forward(self, x, mask, past_key_values):
        batch, length, width = x.shape
        q = self.query(x).view(batch, length, 2, 8).transpose(1, 2)
        past_key, past_value = past_key_values[0]
        k, v = torch.cat([past_key, q], 2), torch.cat([past_value, q], 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return out.transpose(1, 2).reshape(batch, length, width), ((k, v),)


class FixedLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(rand(7, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.position
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


class Embedded(nn.Module):
    """Integer ids, a table of positions that ends, lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(50, 16), nn.Embedding(12, 16)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1])
        x = self.token(ids) + self.position(positions)
        keep = positions[None] < lengths[:, None]
        scores = (x @ x.transpose(1, 2)).masked_fill(~keep[:, None], -1e4)
        return scores.softmax(-1) @ x


class Raw(nn.Module):
    """Query, key and value [B, H, S, D], nothing else."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = x @ x.transpose(1, 2)
        if not mask.all():
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1) @ x


class Measured(nn.Module):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        longest = int(lengths.max())
        return x[:, :longest].softmax(-1)


class Repeating(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(x.shape[0], dim=0)


class WhereBool(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keep = torch.where(mask.any(-1, keepdim=True), mask, torch.ones_like(mask))
        return x.masked_fill(~keep[..., None], 0.0)


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)
