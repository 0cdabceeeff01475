"""The plugin operator in plain PyTorch: what it computes on a CPU, and what its kernel is compared with."""

import torch

from plugins.contract import LOWER_RIGHT, Settings


def rotary_attention_eager(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    bias: torch.Tensor,
    lengths: torch.Tensor,
    settings: Settings,
) -> torch.Tensor:
    """Returns attention [B, H, S, E] of q [B, H, S, D], k [B, G, T, D], v [B, G, T, E] under `settings`.

    Rotation, scores and softmax are float32, or float64 where q is; the rotated tensors are rounded to q's type.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys, share = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    every = torch.full((q.shape[0],), keys, device=q.device)
    visible = lengths.to(torch.int64).clamp(0, keys) if settings.has_lengths else every
    shift = visible - queries if settings.causal_kind == LOWER_RIGHT else torch.zeros_like(visible)
    at = torch.arange(queries, device=q.device) + shift[:, None]  # [B, S]
    cells = torch.arange(keys, device=q.device)
    if settings.rotary_embedding_dim:
        q = rotated(q, at, cos, sin, settings)
    if settings.rotate_key:
        k = rotated(k, cells[None].expand(q.shape[0], keys), cos, sin, settings)
    key, value = (t.to(wide).repeat_interleave(share, dim=1) for t in (k, v))
    scores = q.to(wide) @ key.transpose(-1, -2) * settings.scale
    if settings.softcap:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    if settings.has_bias:
        scores = scores + bias.to(wide)
    keep = (cells < visible[:, None])[:, None, None, :]
    if settings.causal_kind:
        keep = keep & (cells <= at[:, None, :, None])
    if settings.window:
        keep = keep & (at[:, None, :, None] - cells < settings.window)
    scores = scores.masked_fill(~keep, float("-inf"))
    weights = torch.softmax(scores, dim=-1).masked_fill(scores == float("-inf"), 0.0)
    return (weights @ value).to(q.dtype)


def rotated(
    x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Returns x [B, H, S, D] with its first columns rotated by rows `positions` [B, S] of the tables."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = positions.clamp(0, cos.shape[0] - 1)
    c, s = (table.to(wide)[rows][:, None] for table in (cos, sin))  # [B, 1, S, R]
    turned, rest = x[..., : settings.rotary_embedding_dim].to(wide), x[..., settings.rotary_embedding_dim :]
    if settings.interleaved:
        one, two = turned[..., 0::2], turned[..., 1::2]
        mixed = torch.stack((one * c - two * s, two * c + one * s), dim=-1).flatten(-2)
    else:
        one, two = turned.chunk(2, dim=-1)
        mixed = torch.cat((one * c - two * s, two * c + one * s), dim=-1)
    return torch.cat((mixed.to(x.dtype), rest), dim=-1)
