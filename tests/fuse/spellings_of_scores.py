"""Attention as people write it in PyTorch: the scale, masks that are added or filled in, what is done to the scores."""

import math

import torch
import torch.nn.functional as F
from spelling import HEADS, INF, SCALE, D, Spellings, heads
from torch import nn

ALL = Spellings()
spelling = ALL.add


# Where the scale is.


@spelling(dynamo=True)
def product_times_scale(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1) @ v


@spelling()
def product_over_root(q, k, v):
    return torch.matmul(F.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(D), dim=3), v)


@spelling(dynamo=True)
def root_of_the_size_as_a_tensor(q, k, v):
    root = torch.sqrt(torch.tensor(q.size(-1), dtype=q.dtype))
    return torch.softmax(q @ k.transpose(-2, -1) / root, dim=-1) @ v


@spelling()
def query_times_scale(q, k, v):
    return (q * SCALE @ k.transpose(-2, -1)).softmax(-1) @ v


@spelling()
def key_times_scale(q, k, v):
    return (q @ (SCALE * k).transpose(-2, -1)).softmax(-1) @ v


@spelling(dynamo=True)
def transposed_key_times_scale(q, k, v):
    return (q @ (k.permute(0, 1, 3, 2) * SCALE)).softmax(-1) @ v


@spelling()
def half_the_scale_on_both(q, k, v):
    return ((q * D**-0.25) @ (k * D**-0.25).transpose(-2, -1)).softmax(-1) @ v


@spelling(scale=1.0)
def no_scale(q, k, v):
    return torch.softmax(q @ torch.swapaxes(k, -1, -2), dim=-1) @ v


@spelling(mask="float")
def scale_after_the_mask(q, k, v, f):
    return torch.softmax((q @ k.transpose(-2, -1) + f) * SCALE, dim=-1) @ v


@spelling()
class ScaleInABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(SCALE))

    def forward(self, q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1) @ v


@spelling(scale=1.0, dynamo=True)
class ScaleForEachHead(nn.Module):
    """Cosine attention with a learned temperature, as in Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.log(torch.tensor([1.0, 2.0, 3.0, 200.0])).view(HEADS, 1, 1))

    def forward(self, q, k, v):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return torch.softmax(scores * torch.clamp(self.temperature, max=math.log(100.0)).exp(), dim=-1) @ v


# Masks that are added.


@spelling(mask="float", dynamo=True)
def added_mask(q, k, v, f):
    return torch.softmax(q @ k.transpose(-2, -1) * SCALE + f, dim=-1) @ v


@spelling(mask="float")
def added_in_place(q, k, v, f):
    scores = torch.matmul(q, k.transpose(-2, -1))
    scores /= D**0.5
    scores += f
    return torch.matmul(scores.softmax(dim=-1), v)


@spelling(mask="float")
def one_minus_keep_times_ten_thousand(q, k, v, kpad):
    bias = (1.0 - kpad[:, None, None, :].to(q.dtype)) * -10000.0
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(D) + bias, dim=-1) @ v


@spelling(mask="bool", dynamo=True)
def bias_filled_from_a_condition(q, k, v, m):
    """The reference implementation in the documentation of scaled_dot_product_attention."""
    bias = torch.zeros(q.size(-2), k.size(-2), dtype=q.dtype).expand(q.size(0), 1, -1, -1)
    bias = bias.masked_fill(m.logical_not(), INF)
    return torch.softmax(q @ k.transpose(-2, -1) * SCALE + bias, dim=-1) @ v


@spelling(mask="causal")
def upper_triangle_of_infinity(x):
    q, k, v = heads(x), heads(x + 1), heads(x)
    mask = torch.full((x.size(1), x.size(1)), INF).triu(1)
    return torch.softmax(q @ k.transpose(-2, -1) * SCALE + mask, dim=-1) @ v


@spelling(mask="float", dynamo=True)
class Alibi(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", 2.0 ** -(8.0 / HEADS * torch.arange(1, HEADS + 1)).view(HEADS, 1, 1))

    def forward(self, q, k, v):
        distance = torch.arange(k.size(-2))[None, :] - torch.arange(q.size(-2))[:, None]
        return torch.softmax(q @ k.transpose(-2, -1) * SCALE + self.slopes * distance, dim=-1) @ v


@spelling(mask="float", dynamo=True)
class RelativeBias(nn.Module):
    """A learned bias by distance, as in T5; the scores are not scaled there, here they are."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(9, HEADS)

    def forward(self, q, k, v):
        distance = torch.arange(k.size(-2))[None, :] - torch.arange(q.size(-2))[:, None]
        bias = self.bias(distance.clamp(-4, 4) + 4).permute(2, 0, 1).unsqueeze(0)
        return torch.softmax(q @ k.transpose(-2, -1) * SCALE + bias, dim=-1) @ v


@spelling(mask="float")
class ShiftedPositions(nn.Module):
    """Transformer-XL: a second product, padded and viewed anew so that its diagonals become columns."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Linear(32, 32, bias=False)

    def forward(self, x):
        q, k, v = heads(x), heads(x + 1), heads(x)
        scores = (q + 0.1) @ heads(self.position(x)).transpose(-2, -1)
        b, h, s, t = scores.shape
        shifted = F.pad(scores, (1, 0)).view(b, h, t + 1, s)[:, :, 1:].reshape(b, h, s, t)
        return torch.softmax((q @ k.transpose(-2, -1) + shifted) * SCALE, dim=-1) @ v


# Masks that are filled in or selected.


@spelling(mask="bool", dynamo=True)
def filled_with_infinity(q, k, v, m):
    return torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1) @ v


@spelling(mask="bool")
def filled_where_zero_with_a_billion(q, k, v, m):
    return torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(m.int() == 0, -1e9), dim=-1) @ v


@spelling(mask="bool", dynamo=True)
def filled_with_the_smallest_number(q, k, v, m):
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)
    return scores.masked_fill(m.logical_not(), torch.finfo(scores.dtype).min).softmax(-1) @ v


@spelling(mask="bool")
def filled_before_the_scale(q, k, v, m):
    return torch.softmax((q @ k.transpose(-2, -1)).masked_fill(~m, INF) * SCALE, dim=-1) @ v


@spelling(mask="bool", dynamo=True)
def selected_by_where(q, k, v, m):
    scores = q @ k.transpose(-2, -1) * SCALE
    return torch.softmax(torch.where(m, scores, torch.tensor(INF, dtype=q.dtype)), dim=-1) @ v


@spelling(mask="bool")
def selected_the_other_way_round(q, k, v, m):
    scores = q @ k.transpose(-2, -1) * SCALE
    return torch.softmax(torch.where(~m, torch.full_like(scores, -1e9), scores), dim=-1) @ v


@spelling(mask="causal", dynamo=True)
class CausalBuffer(nn.Module):
    """nanoGPT: a triangle in a buffer, sliced to the length."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, x):
        q, k, v, length = heads(x), heads(x + 1), heads(x), x.size(1)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, INF)
        return F.softmax(scores, dim=-1) @ v


@spelling(mask="causal+window+padding")
def causal_and_padding_and_a_window(x, pad):
    q, k, v, at = heads(x), heads(x + 1), heads(x), torch.arange(x.size(1))
    keep = (at[:, None] >= at) & (at[:, None] - at < 3)
    scores = (q @ k.transpose(-2, -1) * SCALE).masked_fill(~keep, -1e9)
    return scores.masked_fill(~pad[:, None, None, :], -1e9).softmax(-1) @ v


@spelling(mask="bool+float")
def added_and_filled(q, k, v, f, m):
    scores = q @ k.transpose(-2, -1) * SCALE + f
    return scores.masked_fill(~m, torch.finfo(scores.dtype).min).softmax(-1) @ v


# What is done to the scores.


@spelling(mask="bool", softcap=5.0, dynamo=True)
def softcapped(q, k, v, m):
    scores = torch.tanh(q @ k.transpose(-2, -1) * SCALE / 5.0) * 5.0
    return torch.softmax(scores.masked_fill(~m, -2.3819763e38), dim=-1) @ v


@spelling(expect="K117")
def clamped(q, k, v):
    return torch.softmax((q @ k.transpose(-2, -1) * SCALE).clamp(-5, 5), dim=-1) @ v
