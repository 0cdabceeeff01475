"""timm's vision-transformer attention: packed qkv, optional qk-norm, hand-written or SDPA, and its RoPE sibling.

Source: huggingface/pytorch-image-models, `timm/layers/attention.py` (Attention, AttentionRope) and
`timm/layers/pos_embed_sincos.py`. Parameter names are theirs, so a published state_dict loads with `strict=True`.
The switch that timm reads from the environment is the argument `fused_attn` here. By hand, q is scaled before the
product and the mask is *added*; a query that sees no key is NaN by hand and 0 with SDPA.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.errors import UsageError
from export.model import checks, rope
from export.model.dtypes import upcast
from export.model.masks import subsequent_mask

Norm = Callable[[int], nn.Module]


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, normalised in at least float32 (timm `RmsNorm`)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [..., channels] normalised, in x's dtype."""
        wide = upcast(x)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


def layer_norm(channels: int) -> nn.LayerNorm:
    """Returns timm's LayerNorm, whose eps is 1e-6."""
    return nn.LayerNorm(channels, eps=1e-6)


def additive_mask(scores: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """Returns what timm adds to the scores [B, H, N, N]: 0 where a key is kept and -inf where not, or None.

    Args:
        scores: The scores, for their length, dtype and device.
        attn_mask: bool (True = keep) or additive, broadcastable to the scores.
        is_causal: Build the causal mask instead; it takes precedence over `attn_mask`.
    """
    if is_causal:
        attn_mask = subsequent_mask(scores.shape[-1], scores.device)
    if attn_mask is None or attn_mask.dtype != torch.bool:
        return attn_mask
    return torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, float("-inf"))


class AttentionRope(nn.Module):
    """Self attention with RoPE on all but the prefix tokens.

    Args:
        dim: Width of the input.
        num_heads: H.
        dim_out: Width of the output; `dim` by default.
        qkv_bias: Whether the input projections have a bias.
        qkv_fused: One packed projection `qkv`, or three named `q_proj`, `k_proj`, `v_proj`.
        num_prefix_tokens: Class and register tokens in front, which do not rotate.
        attn_drop: Dropout on the weights, in training.
        proj_drop: Dropout after the output projection, in training.
        attn_head_dim: D, where it is not dim / H.
        norm_layer: Builds the normalisation for `qk_norm` and `scale_norm`.
        qk_norm: Normalise q and k over D, before RoPE.
        scale_norm: Normalise the merged heads before the output projection.
        proj_bias: Whether the output projection has a bias.
        rotate_half: RoPE on halves; interleaved pairs otherwise.
        fused_attn: Spell the core as `scaled_dot_product_attention`.

    Raises:
        UsageError: `dim` is not divisible by H (and D is not given), or a norm is asked for without `norm_layer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        dim_out: int | None = None,
        qkv_bias: bool = True,
        qkv_fused: bool = True,
        num_prefix_tokens: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        attn_head_dim: int | None = None,
        norm_layer: Norm | None = None,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        rotate_half: bool = False,
        fused_attn: bool = False,
    ) -> None:
        super().__init__()
        if (qk_norm or scale_norm) and norm_layer is None:
            raise UsageError("qk_norm and scale_norm need a normalisation: pass norm_layer, e.g. timm's layer_norm.")
        norm = norm_layer or nn.Identity
        self.num_heads = num_heads
        self.head_dim = checks.head_size(dim, num_heads) if attn_head_dim is None else attn_head_dim
        self.attn_dim = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.rotate = rope.rotate_halves if rotate_half else rope.rotate_pairs_strided
        self.fused_attn = fused_attn
        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias) if qkv_fused else None
        self.q_proj = None if qkv_fused else nn.Linear(dim, self.attn_dim, bias=qkv_bias)
        self.k_proj = None if qkv_fused else nn.Linear(dim, self.attn_dim, bias=qkv_bias)
        self.v_proj = None if qkv_fused else nn.Linear(dim, self.attn_dim, bias=qkv_bias)
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm(self.attn_dim) if scale_norm else nn.Identity()
        self.proj = nn.Linear(self.attn_dim, dim if dim_out is None else dim_out, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool | None = None
    ) -> Tensor:
        """Returns the attended tokens [B, N, dim_out].

        Args:
            x: [B, N, dim], prefix tokens first.
            rope: [sin | cos] of the other tokens, [N - prefix, 2 D], or None.
            attn_mask: bool (True = keep) or additive, broadcastable to [B, H, N, N].
            is_causal: Query i sees keys 0..i; by hand it takes precedence over `attn_mask`. The default is None where
                timm has False: the TorchScript exporter traces a bool default as a tensor, which SDPA refuses.
        """
        query, key, value = self._heads(x)
        query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = self._rotated(query, rope), self._rotated(key, rope)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout, is_causal=bool(is_causal)
            )
        else:
            scores = (query * self.scale) @ key.transpose(-2, -1)
            bias = additive_mask(scores, attn_mask, bool(is_causal))
            scores = scores if bias is None else scores + bias
            out = self.attn_drop(scores.softmax(dim=-1)) @ value
        batch, length, _ = x.shape
        merged = self.norm(out.transpose(1, 2).reshape(batch, length, self.attn_dim))
        projected: Tensor = self.proj_drop(self.proj(merged))
        return projected

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k and v, each [B, H, N, D]."""
        batch, length, _ = x.shape
        if self.qkv is not None:
            packed = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
            query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
            return query, key, value

        query, key, value = (
            projection(x).reshape(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
            if projection is not None
        )
        return query, key, value

    def _rotated(self, x: Tensor, embedding: Tensor) -> Tensor:
        return rope.apply_to_patches(x, embedding, self.num_prefix_tokens, rotate=self.rotate)


class Attention(AttentionRope):
    """timm's plain self attention: the same without RoPE, and with its own argument order and defaults.

    Args:
        dim: Width of the input.
        num_heads: H.
        attn_head_dim: D, where it is not dim / H.
        dim_out: Width of the output; `dim` by default.
        qkv_bias: Whether `qkv` has a bias.
        qk_norm: Normalise q and k over D.
        scale_norm: Normalise the merged heads before the output projection.
        proj_bias: Whether the output projection has a bias.
        attn_drop: Dropout on the weights, in training.
        proj_drop: Dropout after the output projection, in training.
        norm_layer: Builds the normalisation for `qk_norm` and `scale_norm`.
        fused_attn: Spell the core as `scaled_dot_product_attention`.

    Raises:
        UsageError: As `AttentionRope`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Norm | None = None,
        fused_attn: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            dim_out=dim_out,
            qkv_bias=qkv_bias,
            num_prefix_tokens=0,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            attn_head_dim=attn_head_dim,
            norm_layer=norm_layer,
            qk_norm=qk_norm,
            scale_norm=scale_norm,
            proj_bias=proj_bias,
            fused_attn=fused_attn,
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool | None = None
    ) -> Tensor:
        """Returns the attended tokens [B, N, dim_out]; arguments as in `AttentionRope.forward`."""
        return super().forward(x, None, attn_mask, is_causal)
