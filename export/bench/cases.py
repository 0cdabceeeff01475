"""The two attentions of the shape sets, written in PyTorch as models write them: this is what gets exported.

Q, K and V come as the projections leave them, [B, S, H * D], and the result goes as the output projection takes it.

Source of the idioms: huggingface/transformers, `modeling_bert.py` and `modeling_llama.py`, the attention by hand.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.bench.shapes import Shape

LONGEST = 1024
"""Positions that the RoPE tables are made for, where the sequence is not longer."""


class PaddedAttention(nn.Module):
    """BERT-like: a padding mask, 1 = keep, becomes a number that is added to the scores."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns [B, S, H * D].

        Args:
            query: [B, S, H * D].
            key: As `query`.
            value: As `query`.
            attention_mask: int64 [B, S], 1 = keep.
        """
        q, k, v = (_split(x, self.heads, self.size) for x in (query, key, value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        bias = (1.0 - attention_mask[:, None, None, :].to(scores.dtype)) * torch.finfo(scores.dtype).min
        return _merge((scores + bias).softmax(-1) @ v)


class LengthsAttention(PaddedAttention):
    """As speech models write it: the padding mask is made of lengths, and hides keys by -inf."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """Returns [B, S, H * D].

        Args:
            query: [B, S, H * D].
            key: As `query`.
            value: As `query`.
            lengths: Keys to keep, int64 [B].
        """
        q, k, v = (_split(x, self.heads, self.size) for x in (query, key, value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        pad = torch.arange(key.shape[1], device=key.device) >= lengths[:, None]
        return _merge(scores.masked_fill(pad[:, None, None, :], float("-inf")).softmax(-1) @ v)


class CausalAttention(nn.Module):
    """LLaMA-like: rotate-half RoPE from tables, grouped key/value heads, an added causal mask, softmax in fp32."""

    cos: Tensor
    sin: Tensor

    def __init__(self, heads: int, kv_heads: int, size: int, positions: int = LONGEST) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, size
        frequencies = 10000.0 ** (-torch.arange(0, size, 2).double() / size)
        angles = torch.arange(positions).double()[:, None] * frequencies
        whole = torch.cat((angles, angles), -1)
        self.register_buffer("cos", whole.cos().float(), persistent=False)
        self.register_buffer("sin", whole.sin().float(), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Returns [B, S, H * D].

        Args:
            query: [B, S, H * D].
            key: [B, S, Hkv * D].
            value: [B, S, Hkv * D].
        """
        length = query.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        q = _rotate(_split(query, self.heads, self.size), cos, sin)
        k = _rotate(_split(key, self.kv_heads, self.size), cos, sin)
        v = _split(value, self.kv_heads, self.size)
        k, v = (_repeat(x, self.heads // self.kv_heads) for x in (k, v))
        mask = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size) + mask
        weights = scores.softmax(-1, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
        return _merge(weights.to(q.dtype) @ v)


def module(shape: Shape) -> nn.Module:
    """Returns the attention of a shape's family, in eval mode."""
    if shape.family != "causal":
        made = PaddedAttention if shape.family == "padded" else LengthsAttention
        return made(shape.heads, shape.size).eval()
    return CausalAttention(shape.heads, shape.kv_heads, shape.size, max(LONGEST, shape.queries)).eval()


def draw(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Returns inputs by parameter name, normal; the lengths of a padding mask are uniform in [S/4, S]."""
    generator = torch.Generator().manual_seed(seed)
    widths = {"query": shape.heads, "key": shape.kv_heads, "value": shape.kv_heads}
    drawn = {
        name: torch.randn(shape.batch, shape.queries, heads * shape.size, generator=generator)
        for name, heads in widths.items()
    }
    if shape.family != "causal":
        kept = torch.randint(shape.queries // 4, shape.queries + 1, (shape.batch,), generator=generator)
        padded = shape.family == "padded"
        drawn |= (
            {"attention_mask": (torch.arange(shape.queries) < kept[:, None]).long()} if padded else {"lengths": kept}
        )
    return drawn


def keep(shape: Shape, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the mask of the inputs, bool [B, S], True = keep; None for a family without."""
    if shape.family == "padded":
        return inputs["attention_mask"].bool()
    if shape.family == "lengths":
        return torch.arange(shape.key_count, device=inputs["lengths"].device) < inputs["lengths"][:, None]
    return None


def kept_pairs(shape: Shape, inputs: dict[str, Tensor]) -> int:
    """Returns how many pairs of a query and a key the drawn inputs leave to compute."""
    mask = keep(shape, inputs)
    return shape.pairs() if mask is None else int(mask.sum()) * shape.queries


def with_sdpa(shape: Shape, inputs: dict[str, Tensor]) -> Tensor:
    """Returns what the module gives, through PyTorch's own scaled_dot_product_attention."""
    q, k, v = (_split(inputs[n], h, shape.size) for n, h in _heads(shape).items())
    mask = keep(shape, inputs)
    if mask is not None:
        return _merge(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]))
    q, k = rotated(shape, q, k)
    return _merge(functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


def rotated(shape: Shape, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Returns Q and K with RoPE, by the tables of the module."""
    cos, sin = _tables(shape, q.device, q.dtype)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def half_tables(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (cos, sin) [S, D/2] in float32, each angle once."""
    cos, sin = _tables(shape, device, torch.float32)
    return cos[:, : shape.size // 2].contiguous(), sin[:, : shape.size // 2].contiguous()


def split(shape: Shape, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns Q [B, H, S, D], K and V [B, Hkv, S, D]."""
    q, k, v = (_split(inputs[n], h, shape.size) for n, h in _heads(shape).items())
    return q, k, v


def merge(x: Tensor) -> Tensor:
    """Returns [B, H, S, D] as [B, S, H * D]."""
    return _merge(x)


_CACHE: dict[tuple[Shape, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}


def _tables(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key = (shape, device, dtype)
    if key not in _CACHE:
        made = CausalAttention(shape.heads, shape.kv_heads, shape.size, max(LONGEST, shape.queries))
        _CACHE[key] = (made.cos[: shape.queries].to(device, dtype), made.sin[: shape.queries].to(device, dtype))
    return _CACHE[key]


def _heads(shape: Shape) -> dict[str, int]:
    return {"query": shape.heads, "key": shape.kv_heads, "value": shape.kv_heads}


def _split(x: Tensor, heads: int, size: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, size).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _repeat(x: Tensor, times: int) -> Tensor:
    batch, heads, length, size = x.shape
    return x[:, :, None].expand(batch, heads, times, length, size).reshape(batch, heads * times, length, size)
