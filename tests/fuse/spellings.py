"""Attention as people write it in PyTorch: one function each, and what the fuser makes of it today, honestly.

Every function takes some of
    q [B, 4, S, 8]  k, v [B, 4, T, 8]  m bool [B, 1, S, T], True = attend  f [B, 1, S, T] added  x [B, S, 32]
    pad [B, S], kpad [B, T] bool, True = attend  gk, gv [B, 2, T, 8], two heads shared by four.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INF, D, HEADS = float("-inf"), 8, 4
SCALE = D**-0.5


@dataclass(frozen=True)
class Spelling:
    """One spelling and what becomes of it.

    Attributes:
        call: The function, or a module class.
        expect: "fused", or the code it stays with, or "nothing" where there is no Softmax to find.
        mask, scale, softcap, kv_heads, rope: What the fused op's row says.
        half: It is run in float16.
        dynamo: It is one of those that the dynamo exporter always gets, not only among the slow tests.
        library: It calls the library's attention, which is one op on arrival where the opset has one (23).
        fixed: The TorchScript exporter writes the sizes of the example into the graph.
    """

    call: Callable[..., Tensor | tuple[Tensor, Tensor]]
    expect: str = "fused"
    mask: str = "none"
    scale: float = SCALE
    softcap: float | None = None
    kv_heads: int = HEADS
    rope: str = "none"
    half: bool = False
    dynamo: bool = False
    library: bool = False
    fixed: bool = False

    @property
    def name(self) -> str:
        return self.call.__name__

    def module(self) -> nn.Module:
        if isinstance(self.call, type):
            torch.manual_seed(0)
            made = self.call()
        else:
            made = _Function(self.call)
        return (made.half() if self.half else made).eval()


class _Function(nn.Module):
    """A function as a module whose forward has the function's own parameters: torch.export reads their names."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.forward = function


ALL: list[Spelling] = []


def spelling(**facts) -> Callable:
    def register(call):
        ALL.append(Spelling(call, **facts))
        return call

    return register


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


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


@spelling(mask="float")
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


@spelling(mask="bool", dynamo=True)
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


@spelling(mask="bool")
def causal_and_padding_and_a_window(x, pad):
    q, k, v, at = heads(x), heads(x + 1), heads(x), torch.arange(x.size(1))
    keep = (at[:, None] >= at) & (at[:, None] - at < 3)
    scores = (q @ k.transpose(-2, -1) * SCALE).masked_fill(~keep, -1e9)
    return scores.masked_fill(~pad[:, None, None, :], -1e9).softmax(-1) @ v


@spelling(mask="bool+float")
def added_and_filled(q, k, v, f, m):
    scores = q @ k.transpose(-2, -1) * SCALE + f
    return scores.masked_fill(~m, torch.finfo(scores.dtype).min).softmax(-1) @ v


@spelling(expect="K107")
def multiplied_and_subtracted(q, k, v, m):
    keep = m.to(q.dtype)
    scores = q @ k.transpose(-2, -1) * SCALE
    return torch.softmax(scores * keep - 1e4 * (1 - keep), dim=-1) @ v


# What is done to the scores.


@spelling(mask="bool", softcap=5.0, dynamo=True)
def softcapped(q, k, v, m):
    scores = torch.tanh(q @ k.transpose(-2, -1) * SCALE / 5.0) * 5.0
    return torch.softmax(scores.masked_fill(~m, -2.3819763e38), dim=-1) @ v


@spelling(expect="K117")
def clamped(q, k, v):
    return torch.softmax((q @ k.transpose(-2, -1) * SCALE).clamp(-5, 5), dim=-1) @ v


@spelling(expect="nothing")
def exponentials_by_hand(q, k, v):
    scores = q @ k.transpose(-2, -1) * SCALE
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True) @ v


@spelling(expect="K210")
def row_maximum_taken_off(q, k, v):
    scores = q @ k.transpose(-2, -1) * SCALE
    return torch.softmax(scores - scores.amax(-1, keepdim=True), dim=-1) @ v


@spelling(expect="K102")
class Sink(nn.Module):
    """A learned logit beside the keys, dropped after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.randn(HEADS))

    def forward(self, q, k, v):
        scores = q @ k.transpose(-2, -1) * SCALE
        sink = self.sink.view(1, HEADS, 1, 1).expand(q.size(0), -1, q.size(2), -1)
        return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1] @ v


# What is done to the weights.


@spelling(mask="bool")
def not_a_number_to_zero_by_where(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1)
    return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights) @ v


@spelling(expect="K304")
def not_a_number_to_number(q, k, v, m):
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(~m, INF), dim=-1)
    return torch.nan_to_num(weights) @ v


@spelling(mask="bool", dynamo=True)
def masked_again_to_zero(q, k, v, m):
    hidden = m.eq(0)
    weights = torch.softmax((q @ k.transpose(-2, -1) * SCALE).masked_fill(hidden, INF), dim=-1)
    return weights.masked_fill(hidden, 0.0) @ v


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


@spelling(half=True, expect="K205")
def query_and_key_in_float32(q, k, v):
    return torch.softmax(q.float() @ k.float().transpose(-2, -1) * SCALE, dim=-1).to(v.dtype) @ v


# How the products are written.


@spelling(dynamo=True)
def einsum_heads_first(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).mul(SCALE).softmax(-1), v)


@spelling()
def einsum_length_first(x):
    q, k, v = (y.view(*y.shape[:2], HEADS, -1) for y in (x, x + 1, x * 2))
    weights = torch.einsum("blhe,bshe->bhls", q, k).mul(SCALE).softmax(-1)
    return torch.einsum("bhls,bshd->blhd", weights, v).contiguous().view(x.shape)


@spelling(expect="K102")
def einsum_with_an_ellipsis(q, k, v):
    return torch.einsum("...qk,...kd->...qd", torch.einsum("...qd,...kd->...qk", q, k).mul(SCALE).softmax(-1), v)


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


@spelling(kv_heads=1, mask="float")
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


@spelling(mask="bool")
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


@spelling(expect="K206")
def queries_in_groups(q, gk, gv):
    grouped = q.view(q.shape[0], 2, 2, -1, D)
    weights = torch.softmax(grouped @ gk[:, :, None].transpose(-2, -1) * SCALE, dim=-1)
    return (weights @ gv[:, :, None]).view(q.shape)


# The library's own, and positions.


@spelling(mask="bool", library=True, dynamo=True)
def library_with_a_mask(q, k, v, m):
    return F.scaled_dot_product_attention(q, k, v, m)


@spelling(mask="bool", library=True)
def library_causal(x):
    return F.scaled_dot_product_attention(heads(x), heads(x + 1), heads(x), is_causal=True)


@spelling(mask="float", library=True, fixed=True)
class LibraryModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, HEADS, batch_first=True)

    def forward(self, x, pad):
        return self.attend(x, x, x, key_padding_mask=~pad, need_weights=False)[0]


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
