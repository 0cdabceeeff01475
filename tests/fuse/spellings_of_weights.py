"""Attention as people write it in PyTorch: what is done to the weights, the products, shared heads, positions."""

import math

import torch
import torch.nn.functional as F
from spelling import HEADS, INF, SCALE, D, Spellings, heads
from torch import Tensor, nn

ALL = Spellings()
spelling = ALL.add


# What is done to the weights.


@spelling(mask="bool")
def not_a_number_to_zero_by_where(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1)
    return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights) @ v


@spelling(mask="bool", dynamo=True)
def not_a_number_to_number(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1)
    return torch.nan_to_num(weights) @ v


@spelling(mask="bool", dynamo=True)
def masked_again_to_zero(q, k, v, m):
    hidden = m.eq(0)
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(hidden, INF), dim=-1)
    return weights.masked_fill(hidden, 0.0) @ v


@spelling(mask="bool")
def rows_without_keys_to_zero(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1)
    return torch.where(m.any(-1, keepdim=True), weights, 0.0) @ v


@spelling(mask="bool")
def rows_of_hidden_keys_to_zero(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1)
    return weights.masked_fill((~m).all(-1, keepdim=True), 0.0) @ v


@spelling(mask="bool", dynamo=True)
def rows_of_lowest_scores_to_zero(q, k, v, m):
    scores = (q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF)
    return torch.where((scores == INF).all(-1, keepdim=True), 0.0, torch.softmax(scores, dim=-1)) @ v


@spelling(mask="bool")
def rows_without_a_mask_to_zero(q, k, v, m):
    bias = torch.zeros_like(m, dtype=q.dtype).masked_fill(~m, INF)
    weights = torch.softmax(q @ k.transpose(-2, -1) * SCALE + bias, dim=-1)
    return weights.masked_fill(bias.amax(-1, keepdim=True) == INF, 0.0) @ v


@spelling(mask="bool", dynamo=True)
def masked_again_by_a_product(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, -1e9), dim=-1)
    return (weights * m) @ v


@spelling(dynamo=True)
def keys_left_out_afterwards(q, k, v, kpad):
    weights = torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1)
    return (weights * kpad[:, None, None].float()) @ v


@spelling()
def values_first(q, k, v):
    weights = torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1)
    return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)


@spelling()
def scores_wanted_too(q, k, v):
    scores = q @ k.transpose(-2, -1)
    return torch.softmax(scores * SCALE, dim=-1) @ v, scores


@spelling(kv_heads=1)
def weights_of_merged_heads_wanted_too(q, k, v):
    q3, k3, v3 = (y.reshape(-1, y.shape[2], D) for y in (q, k, v))
    weights = torch.bmm(q3, k3.transpose(1, 2)).mul(SCALE).softmax(-1)
    shaped = weights.view(q.shape[0], HEADS, q.shape[2], k.shape[2])
    return torch.bmm(weights, v3).view(q.shape), shaped, shaped.mean(dim=1)


@spelling()
class DroppedOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, q, k, v):
        return F.dropout(self.drop(torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1)), 0.1, self.training) @ v


@spelling(dynamo=True)
def weights_wanted_too(q, k, v):
    weights = torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1)
    return weights @ v, weights


@spelling()
def mean_of_the_weights_wanted_too(q, k, v):
    weights = torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1)
    return weights @ v, weights.mean(dim=1)


@spelling(half=True, dynamo=True)
def softmax_in_float32(q, k, v):
    return F.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@spelling(half=True, mask="float")
def scores_in_float32(q, k, v, f):
    scores = torch.matmul(q, k.transpose(-2, -1)).float() * SCALE + f.float()
    return torch.softmax(scores, dim=-1).type_as(q) @ v


# How the products are written.


@spelling(dynamo=True)
def einsum_heads_first(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).mul(SCALE).softmax(-1), v)


@spelling()
def einsum_length_first(x):
    q, k, v = (y.view(*y.shape[:2], HEADS, -1) for y in (x, x + 1, x * 2))
    weights = torch.einsum("blhe,bshe->bhls", q, k).mul(SCALE).softmax(-1)
    return torch.einsum("bhls,bshd->blhd", weights, v).contiguous().view(x.shape)


@spelling()
def keys_times_queries(q, k, v):
    return (k @ q.transpose(-2, -1) * SCALE).transpose(-2, -1).softmax(-1) @ v


@spelling(kv_heads=1, dynamo=True)
def merged_heads_with_bmm(q, k, v):
    q3, k3, v3 = (y.reshape(-1, y.shape[2], D) for y in (q, k, v))
    return torch.bmm(torch.bmm(q3, k3.transpose(1, 2)).mul(SCALE).softmax(-1), v3).view(q.shape)


@spelling(kv_heads=1, mask="float")
def merged_heads_with_baddbmm(q, k, v, f):
    q3, k3, v3 = (y.reshape(-1, y.shape[2], D) for y in (q, k, v))
    bias = f.expand(-1, HEADS, -1, -1).reshape(-1, q.shape[2], k.shape[2])
    return torch.bmm(torch.baddbmm(bias, q3, k3.transpose(1, 2), alpha=SCALE).softmax(-1), v3).view(q.shape)


@spelling(mask="float")
def merged_heads_split_for_a_mask(q, k, v, f):
    q3, k3, v3 = (y.reshape(-1, y.shape[2], D) for y in (q, k, v))
    scores = torch.bmm(q3 * SCALE, k3.transpose(1, 2)).view(q.shape[0], HEADS, q.shape[2], k.shape[2]) + f
    return torch.bmm(scores.view(-1, q.shape[2], k.shape[2]).softmax(-1), v3).view(q.shape)


@spelling(dynamo=True)
class PackedAndUnbound(nn.Module):
    """timm: one projection, its heads and thirds taken apart by reshape and permute."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj((((q * SCALE) @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))


@spelling(mask="padding")
class PackedAndSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x, pad):
        q, k, v = (heads(part) for part in self.qkv(x).split(32, dim=2))
        scores = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(~pad[:, None, None], INF)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


# Fewer key and value heads.


def repeat_kv(y: Tensor, times: int) -> Tensor:
    b, h, t, d = y.shape
    return y[:, :, None].expand(b, h, times, t, d).reshape(b, h * times, t, d)


@spelling(kv_heads=2, dynamo=True)
def shared_heads_expanded(q, gk, gv):
    return torch.softmax(q @ repeat_kv(gk, 2).transpose(2, 3) * SCALE, dim=-1) @ repeat_kv(gv, 2)


@spelling(kv_heads=2)
def shared_heads_interleaved(q, gk, gv):
    k, v = gk.repeat_interleave(2, dim=1), gv.repeat_interleave(2, dim=1)
    return torch.softmax(q @ k.transpose(2, 3) * SCALE, dim=-1) @ v


@spelling(kv_heads=1)
def one_head_for_all(q, gk, gv):
    return torch.softmax(q @ gk[:, :1].transpose(2, 3) * SCALE, dim=-1) @ gv[:, :1]


# The library's own, and positions.


@spelling(mask="bool", library=True, dynamo=True)
def library_with_a_mask(q, k, v, m):
    return F.scaled_dot_product_attention(q, k, v, m)


@spelling(mask="causal", library=True)
def library_causal(x):
    return F.scaled_dot_product_attention(heads(x), heads(x + 1), heads(x), is_causal=True)


@spelling(mask="float", library=True, fixed=True)
class LibraryModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, HEADS, batch_first=True)

    def forward(self, x, pad):
        return self.attend(x, x, x, key_padding_mask=~pad, need_weights=False)[0]


@spelling(mask="float", kv_heads=1, fixed=True)
class LibraryModuleWithWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, HEADS, batch_first=True)

    def forward(self, x, pad):
        return self.attend(x, x, x, key_padding_mask=~pad)


@spelling(mask="float", kv_heads=1, fixed=True)
class LibraryModuleWithEveryHeadsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, HEADS, batch_first=True)

    def forward(self, x, pad):
        return self.attend(x, x, x, key_padding_mask=~pad, average_attn_weights=False)


def rotate_half(y: Tensor) -> Tensor:
    return torch.cat((-y[..., D // 2 :], y[..., : D // 2]), dim=-1)


@spelling(rope="qk", dynamo=True)
def rotated_by_halves(x):
    angles = torch.arange(x.size(1))[:, None] * 100.0 ** (-torch.arange(0, D, 2) / D)
    cos, sin = (torch.cat((t, t), dim=-1) for t in (angles.cos(), angles.sin()))
    q, k, v = heads(x), heads(x + 1), heads(x)
    q, k = (y * cos + rotate_half(y) * sin for y in (q, k))
    return torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1) @ v


@spelling(rope="qk")
def rotated_in_pairs(x):
    angles = torch.arange(x.size(1))[:, None, None] * 100.0 ** (-torch.arange(0, D, 2) / D)
    q, k, v = (y.view(*y.shape[:2], HEADS, D) for y in (x, x + 1, x))

    def turn(y):
        one, two = y.unflatten(-1, (-1, 2)).unbind(-1)
        turned = one * angles.cos() - two * angles.sin(), one * angles.sin() + two * angles.cos()
        return torch.stack(turned, dim=-1).flatten(-2).transpose(1, 2)

    return torch.softmax(turn(q) @ turn(k).transpose(-2, -1) * SCALE, dim=-1) @ v.transpose(1, 2)
