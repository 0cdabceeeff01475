"""Attention as people write it in PyTorch: where batch, heads and windows are, broadcasts, groups, factors."""

import torch
import torch.nn.functional as F
from spelling import HEADS, INF, SCALE, D, Spellings, heads
from torch import Tensor, nn

ALL = Spellings()
spelling = ALL.add


def length_first(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, -1)


# Einsum in any order of axes.


@spelling(dynamo=True)
def einsum_with_an_ellipsis(q, k, v):
    return torch.einsum("...qk,...kd->...qd", torch.einsum("...qd,...kd->...qk", q, k).mul(SCALE).softmax(-1), v)


@spelling(mask="padding", dynamo=True)
def einsum_queries_before_heads(x, pad):
    """Weights as [B, S, H, T], the mask laid out for that."""
    q, k, v = length_first(x), length_first(x + 1), length_first(x * 2)
    scores = torch.einsum("bqhd,bkhd->bqhk", q, k) * SCALE + torch.where(pad, 0.0, -1e9)[:, None, None, :]
    return torch.einsum("bqhk,bkhd->bqhd", scores.softmax(-1), v)


@spelling(mask="padding")
def einsum_keys_before_the_batch(x, pad):
    """Transformer-XL: [query, key, batch, head], softmax over axis 1."""
    q, k, v = (length_first(y).transpose(0, 1) for y in (x, x + 1, x * 2))
    scores = torch.einsum("ibnd,jbnd->ijbn", q, k) * SCALE
    scores = scores.masked_fill(~pad.transpose(0, 1)[None, :, :, None], INF)
    return torch.einsum("ijbn,jbnd->ibnd", scores.softmax(dim=1), v)


@spelling()
def einsum_keys_on_the_left(q, k, v):
    scores = torch.einsum("bhkd,bhqd->bhkq", k, q) * SCALE
    return torch.einsum("bhkq,bhkd->bhqd", scores.softmax(2), v)


@spelling(kv_heads=1)
def einsum_with_one_key_head(q, gk, gv):
    weights = torch.einsum("bhqd,bkd->bhqk", q, gk[:, 0]).mul(SCALE).softmax(-1)
    return torch.einsum("bhqk,bkd->bhqd", weights, gv[:, 0])


@spelling(kv_heads=2, dynamo=True)
def einsum_in_groups(q, gk, gv):
    grouped = q.unflatten(1, (2, 2))
    weights = torch.einsum("bhgqd,bhkd->bhgqk", grouped, gk).mul(SCALE).softmax(-1)
    return torch.einsum("bhgqk,bhkd->bhgqd", weights, gv).flatten(1, 2)


@spelling(kv_heads=1, dynamo=True)
def einsum_of_a_latent_cache(x):
    """DeepSeek's absorbed latent attention: [b, s, h, c] against [b, t, c], values of that width too."""
    q, cache = length_first(x), x[..., :D]
    weights = torch.einsum("bshc,btc->bsht", q, cache).mul(SCALE).softmax(-1)
    return torch.einsum("bsht,btc->bshc", weights, cache)


@spelling(expect="K104")
def talking_heads(q, k, v):
    scores = torch.einsum("bhij,hg->bgij", q @ k.transpose(-2, -1) * SCALE, torch.eye(HEADS) + 0.1)
    return scores.softmax(-1) @ v


# More axes than batch and heads.


@spelling(kv_heads=2, dynamo=True)
def queries_in_groups(q, gk, gv):
    grouped = q.view(q.shape[0], 2, 2, -1, D)
    weights = torch.softmax(grouped @ gk[:, :, None].transpose(-2, -1) * SCALE, dim=-1)
    return (weights @ gv[:, :, None]).view(q.shape)


@spelling(kv_heads=2, mask="bool")
def queries_in_groups_under_a_mask(q, gk, gv, m):
    grouped = q.reshape(-1, 2, 2, q.shape[2], D)
    scores = (grouped @ gk.unsqueeze(2).transpose(-2, -1) * SCALE).masked_fill(~m[:, :, None], INF)
    return (scores.softmax(-1) @ gv.unsqueeze(2)).flatten(1, 2)


@spelling(kv_heads=2, mask="float")
def queries_in_groups_under_a_bias_for_each_head(q, gk, gv, f):
    grouped = q.unflatten(1, (2, 2))
    bias = (f * torch.arange(4.0)[:, None, None]).unflatten(1, (2, 2))
    return ((grouped @ gk[:, :, None].transpose(-1, -2) * SCALE + bias).softmax(-1) @ gv[:, :, None]).flatten(1, 2)


@spelling(mask="float", dynamo=True)
class RowsOfAnAlignment(nn.Module):
    """The Evoformer's rows: [B, R, H, S, D], a mask for each row, a bias for each pair, a gate on the output."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.gate = nn.Linear(1, HEADS), nn.Linear(32, 32)

    def forward(self, x, pad, f):
        rows = torch.stack([x, x + 1, x * 2], dim=1)
        q, k, v = (y.unflatten(-1, (HEADS, D)).transpose(-2, -3) for y in (rows * SCALE, rows - 1, rows))
        mask = (torch.stack([pad, pad, ~pad], 1).to(x.dtype) - 1)[:, :, None, None, :] * 1e9
        pair = self.pair((x @ x.transpose(-1, -2))[..., None]).permute(0, 3, 1, 2)[:, None]
        out = ((q @ k.transpose(-1, -2) + mask + pair).softmax(-1) @ v).transpose(-2, -3).flatten(-2)
        return torch.sigmoid(self.gate(rows)) * out


@spelling(mask="float")
class ShiftedWindows(nn.Module):
    """Swin: [B * nW, H, N, N], seen as [B, nW, ...] for the windows' mask and merged again."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, HEADS, 1, 1))

    def forward(self, q, k, v, m):
        windows = torch.stack([m[:1, 0], ~m[:1, 0] | m[:1, 0]], 1)
        hidden = torch.where(windows, 0.0, -100.0)
        q, k, v = (y.repeat(2, 1, 1, 1) for y in (q, k, v))
        scores = q * SCALE @ k.transpose(-1, -2) + self.table
        b, h, s, t = scores.shape
        scores = scores.view(b // 2, 2, h, s, t) + hidden.unsqueeze(2)
        return scores.view(-1, h, s, t).softmax(-1) @ v


@spelling(mask="padding", kv_heads=3)
def blocks_of_five_axes(x, pad):
    """[B, heads, blocks, within, D] with three lengths of the batch: heads are not the last leading axis."""
    q, k, v = (heads(y).unsqueeze(2).expand(-1, -1, 3, -1, -1) for y in (x, x + 1, x * 2))
    q = q + torch.arange(3.0)[:, None, None]
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~pad[:, None, None, None], -1e9)
    return scores.softmax(-1) @ v


@spelling(kv_heads=2)
def strips_of_a_picture(x):
    """CSWin and axial attention: the rows of a picture are the batch."""
    picture = torch.stack([x, x + 1], dim=1)
    q, k, v = (y.unflatten(-1, (HEADS, D)).permute(0, 3, 1, 2, 4) for y in (picture, picture - 1, picture * 2))
    return (q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v


# Heads merged into the batch.


@spelling(kv_heads=1)
def merged_heads_in_fairseq(x, pad):
    """Length first, heads beside the batch, keys hidden in a view of four axes."""
    q, k, v = (y.transpose(0, 1) for y in (x * SCALE, x + 1, x))
    length, batch, width = q.shape
    q, k, v = (y.contiguous().view(length, batch * HEADS, D).transpose(0, 1) for y in (q, k, v))
    weights = F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, v).transpose(0, 1).contiguous().view(length, batch, width)


@spelling(mask="padding")
def merged_heads_under_a_view_of_four_axes(x, pad):
    q, k, v = (y.transpose(0, 1) for y in (x * SCALE, x + 1, x))
    length, batch, width = q.shape
    q, k, v = (y.contiguous().view(length, batch * HEADS, D).transpose(0, 1) for y in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, HEADS, length, length)
    scores = scores.masked_fill(~pad[:, None, None].to(torch.bool), INF).view(batch * HEADS, length, length)
    out = torch.bmm(F.softmax(scores, dim=-1, dtype=torch.float32).type_as(scores), v)
    return out.transpose(0, 1).contiguous().view(length, batch, width)


@spelling(kv_heads=1, mask="float")
def baddbmm_of_nothing(q, k, v, f):
    """Megatron: an empty tensor with beta 0; here with a bias afterwards."""
    q3, k3, v3 = (y.flatten(0, 1) for y in (q, k, v))
    scores = torch.baddbmm(
        torch.zeros(1, 1, 1).expand(q3.size(0), q3.size(1), k3.size(1)), q3, k3.transpose(-1, -2), beta=0.0, alpha=SCALE
    )
    return torch.bmm((scores + f.expand(-1, HEADS, -1, -1).flatten(0, 1)).softmax(-1), v3).unflatten(0, (-1, HEADS))


@spelling(mask="float")
def baddbmm_of_alibi(q, k, v, kpad):
    """BLOOM: a bias along the keys for each head, scores seen with four axes afterwards."""
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    alibi = (slopes[:, None, None] * (kpad.long().cumsum(-1) - 1)[:, None, None, :]).flatten(0, 1)
    q3, k3, v3 = (y.flatten(0, 1) for y in (q, k, v))
    scores = alibi.view(-1, 1, k.size(2)).baddbmm(batch1=q3, batch2=k3.transpose(-1, -2), beta=1.0, alpha=SCALE)
    weights = scores.view(q.size(0), HEADS, q.size(2), k.size(2)).softmax(-1)
    return torch.bmm(weights.view(-1, q.size(2), k.size(2)), v3).view(q.size(0), HEADS, q.size(2), D)


# Broadcasts.


@spelling(dynamo=True)
class LatentQueries(nn.Module):
    """Perceiver, Q-Former: one set of queries for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, HEADS, 3, D))

    def forward(self, k, v):
        return (self.latents @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v


@spelling()
class LearnedMemory(nn.Module):
    """External attention: keys and values are weights, without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Parameter(torch.randn(HEADS, D, 6)), nn.Parameter(torch.randn(HEADS, 6, D))

    def forward(self, q):
        return (torch.matmul(q, self.keys) * SCALE).softmax(-1) @ self.values


@spelling()
def one_key_head_and_all_value_heads(q, gk, v):
    return (q @ gk[:, :1].transpose(-1, -2) * SCALE).softmax(-1) @ v


@spelling(kv_heads=2, dynamo=True)
def shared_heads_by_index(q, gk, gv):
    order = torch.tensor([0, 0, 1, 1])
    return (q @ gk[:, order].transpose(-1, -2) * SCALE).softmax(-1) @ gv.index_select(1, order)


@spelling()
def heads_repeated_in_turn(q, gk, gv):
    """0, 1, 0, 1: not the order in which Attention shares heads."""
    return (q @ gk.repeat(1, 2, 1, 1).transpose(-1, -2) * SCALE).softmax(-1) @ torch.cat([gv, gv], dim=1)


@spelling(kv_heads=2, dynamo=True)
def shared_heads_length_first(q, gk, gv):
    """Keys as [B, T, Hkv, D], repeated there and turned afterwards, as early llamas do."""

    def repeated(y):
        y = y.transpose(1, 2)
        b, t, h, d = y.shape
        return y[:, :, :, None, :].expand(b, t, h, 2, d).reshape(b, t, h * 2, d).transpose(1, 2)

    return (q @ repeated(gk).transpose(-1, -2) * SCALE).softmax(-1) @ repeated(gv)


# The product's own precision and width.


@spelling(half=True, dynamo=True)
def query_and_key_in_float32(q, k, v):
    return torch.softmax(q.float() @ k.float().transpose(-2, -1) * SCALE, dim=-1).to(v.dtype) @ v


@spelling(half=True)
def scaled_query_in_float32(q, k, v):
    return torch.softmax((q.float() * SCALE) @ k.transpose(-2, -1).float(), dim=-1).to(v.dtype) @ v


@spelling(half=True)
def all_in_float32(x):
    q, k, v = (heads(y.float()) for y in (x, x + 1, x * 2))
    return ((q * SCALE @ k.transpose(-1, -2)).softmax(-1) @ v).to(x.dtype)


@spelling(dynamo=True)
def values_of_another_width(q, k, v):
    return (q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ torch.cat([v, v], dim=-1)[..., :12]


@spelling(scale=(D + 4) ** -0.5, mask="none", dynamo=True)
def content_and_position_side_by_side(q, k, v, gk):
    """MLA: a part of K is one for all heads; V has a width of its own."""
    k = torch.cat([k, gk[:, :1, :, :4].expand(-1, HEADS, -1, -1)], dim=-1)
    return (torch.cat([q, q[..., :4]], -1) @ k.transpose(-1, -2) * (D + 4) ** -0.5).softmax(-1) @ v


@spelling(scale=0.25, mask="float")
def content_and_position_added(q, k, v, gk):
    return ((q @ k.transpose(-1, -2) + q[..., :4] @ gk[:, :1, :, :4].transpose(-1, -2)) * 0.25).softmax(-1) @ v


# Factors that are tensors.


@spelling(scale=1.0)
class TemperatureForEachHead(nn.Module):
    """Divided, not multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 3.0]).view(1, HEADS, 1, 1))

    def forward(self, q, k, v):
        return (q @ k.transpose(-1, -2) / self.temperature).softmax(-1) @ v


@spelling(scale=1.0, mask="float", dynamo=True)
def logarithm_of_the_length(q, k, v, f, kpad):
    """A factor for each row of the batch, then a scalar from the shape."""
    seen = kpad.sum(-1).clamp(min=1)[:, None, None, None].to(q.dtype)
    return (q @ k.transpose(-1, -2) * seen.log() / (seen + 1.0) + f).softmax(-1) @ v


@spelling(scale=10.0)
def cosine_of_the_angle(q, k, v):
    """The norms divide the product, not Q and K."""
    scores = q @ k.transpose(-1, -2) / q.norm(dim=-1, keepdim=True) / k.norm(dim=-1).unsqueeze(-2)
    return (scores / 0.1).softmax(-1) @ v


@spelling(softcap=4.0, scale=4.0 * SCALE, dynamo=True)
def capped_and_scaled(q, k, v):
    return (2.0 * torch.tanh(q @ k.transpose(-1, -2) * SCALE) * 2.0 * 1.0).softmax(-1) @ v


@spelling(softcap=30.0, scale=1.0)
class CappedForEachHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 3.0]).view(HEADS, 1, 1))

    def forward(self, q, k, v):
        return (30.0 * torch.tanh(q @ k.transpose(-1, -2) * self.temperature / 30.0)).softmax(-1) @ v


@spelling(softcap=1.0)
def bent_alone(q, k, v):
    return torch.tanh(q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v


@spelling(expect="K108")
def masked_and_multiplied_for_each_head(q, k, v, f):
    return ((q @ k.transpose(-1, -2) + f) * torch.tensor([1.0, 2.0, 0.5, 3.0]).view(HEADS, 1, 1)).softmax(-1) @ v


@spelling(scale=1.0)
def channels_attend(x):
    """XCiT: the weights mix channels; Q and K are transposed, so are the values."""
    q, k, v = (heads(y).transpose(-1, -2) for y in (x, x + 1, x * 2))
    return ((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)).softmax(-1) @ v).transpose(-1, -2)


@spelling(mask="bool", dynamo=True)
def values_on_the_left(q, k, v, m):
    """Convolutional attention: V^T P^T, softmax over the first of the two lengths."""
    scores = (k @ q.transpose(-1, -2) * SCALE).masked_fill(~m.transpose(-1, -2), INF)
    return v.transpose(-1, -2) @ scores.softmax(dim=-2)
