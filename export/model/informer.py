"""Attention of the time-series library: an AttentionLayer around an exchangeable inner attention.

The layer projects and views to [B, L, H, D] without a transpose; the inner attention returns (context, weights or
None). Masks are objects with a `.mask` that is **True where masked**; a tensor of that meaning does too. Names are
upstream's. The scale multiplies the masked scores, and -inf times a positive scale stays -inf.

Source: thuml/Time-Series-Library `layers/SelfAttention_Family.py` and `utils/masking.py`, after
zhouhaoyi/Informer2020 `models/attn.py`; DSAttention from Non-stationary Transformers (arXiv 2205.14415).
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from export.model.capturing import constant


class Mask(Protocol):
    """What an attention mask is to this family."""

    @property
    def mask(self) -> Tensor:
        """True = masked, broadcastable to [B, H, L, S]."""


class TriangularCausalMask:
    """The causal mask of B sequences of length L, `.mask` bool [B, 1, L, L] with True = masked."""

    def __init__(self, B: int, L: int, device: torch.device | str | None = None) -> None:
        self._mask = torch.ones(B, 1, L, L, dtype=torch.bool, device=device).triu(diagonal=1)

    @property
    def mask(self) -> Tensor:
        """True above the diagonal."""
        return self._mask


class FullAttention(nn.Module):
    """Softmax attention over all keys.

    Args:
        mask_flag: Apply a mask: the one given, else the causal one.
        factor: Unused; every attention of the family takes it.
        scale: Scale of the scores; None or 0 means 1 / sqrt(D).
        attention_dropout: Dropout on the weights while training.
        output_attention: Return the weights.
    """

    def __init__(
        self,
        mask_flag: bool = True,
        factor: int = 5,
        scale: float | None = None,
        attention_dropout: float = 0.0,
        output_attention: bool = False,
    ) -> None:
        super().__init__()
        self.mask_flag = mask_flag
        self.scale = scale
        self.output_attention = output_attention
        self.dropout = nn.Dropout(attention_dropout)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Mask | Tensor | None = None,
        tau: Tensor | None = None,
        delta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (context [B, L, H, Dv], weights [B, H, L, S] or None).

        Args:
            queries: [B, L, H, D].
            keys: [B, S, H, D].
            values: [B, S, H, Dv].
            attn_mask: True = masked, broadcastable to [B, H, L, S]; used only with `mask_flag`.
            tau: Not used here; see `DSAttention`.
            delta: Likewise.

        Raises:
            UsageError: The mask would be the causal one, but L and S differ.
        """
        return self._attend(torch.einsum("blhe,bshe->bhls", queries, keys), queries, values, attn_mask)

    def _attend(
        self, scores: Tensor, queries: Tensor, values: Tensor, attn_mask: Mask | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.mask_flag:
            scores = scores.masked_fill(self._mask(scores, attn_mask), -math.inf)
        scale = self.scale or 1.0 / math.sqrt(constant(queries.shape[-1]))
        weights = self.dropout(torch.softmax(scale * scores, dim=-1))
        context = torch.einsum("bhls,bshd->blhd", weights, values).contiguous()
        return context, weights if self.output_attention else None

    @staticmethod
    def _mask(scores: Tensor, attn_mask: Mask | Tensor | None) -> Tensor:
        if attn_mask is not None:
            return attn_mask if isinstance(attn_mask, Tensor) else attn_mask.mask
        batch, _, length, keys = scores.shape
        require_self_attention(length, keys)
        return TriangularCausalMask(batch, length, device=scores.device).mask


class DSAttention(FullAttention):
    """De-stationary attention: scores are rescaled by tau and shifted by delta before mask, scale and softmax.

    softmax(scale * (q k^T tau + delta)), which is attention of q * tau with the bias delta * scale. Arguments as for
    `FullAttention`.
    """

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Mask | Tensor | None = None,
        tau: Tensor | None = None,
        delta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what `FullAttention.forward` does.

        Args:
            queries: As there, and so are `keys`, `values` and `attn_mask`.
            keys: As there.
            values: As there.
            attn_mask: As there.
            tau: Factor on the scores, [B, 1]; None means 1.
            delta: Added to the scores, [B, S]; None means 0.

        Raises:
            UsageError: As there.
        """
        scores = torch.einsum("blhe,bshe->bhls", queries, keys)
        if tau is not None:
            scores = scores * tau.unsqueeze(1).unsqueeze(1)
        if delta is not None:
            scores = scores + delta.unsqueeze(1).unsqueeze(1)
        return self._attend(scores, queries, values, attn_mask)


class AttentionLayer(nn.Module):
    """Projections around an inner attention.

    Args:
        attention: `FullAttention`, `DSAttention` or `ProbAttention`.
        d_model: Model width E.
        n_heads: Number of heads H.
        d_keys: Size D of a query and key head; None means E // H.
        d_values: Size Dv of a value head; None means E // H.
        mix: Transpose the context's middle axes before the heads are merged (Informer2020's decoder).
    """

    def __init__(
        self,
        attention: nn.Module,
        d_model: int,
        n_heads: int,
        d_keys: int | None = None,
        d_values: int | None = None,
        mix: bool = False,
    ) -> None:
        super().__init__()
        d_keys = d_keys or d_model // n_heads
        d_values = d_values or d_model // n_heads
        self.inner_attention = attention
        self.query_projection = nn.Linear(d_model, d_keys * n_heads)
        self.key_projection = nn.Linear(d_model, d_keys * n_heads)
        self.value_projection = nn.Linear(d_model, d_values * n_heads)
        self.out_projection = nn.Linear(d_values * n_heads, d_model)
        self.n_heads = n_heads
        self.mix = mix

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Mask | Tensor | None = None,
        tau: Tensor | None = None,
        delta: Tensor | None = None,
        **inner: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (output [B, L, E], weights or None).

        Args:
            queries: [B, L, E].
            keys: [B, S, E].
            values: [B, S, E].
            attn_mask: As for the inner attention.
            tau: As for `DSAttention`.
            delta: As for `DSAttention`.
            **inner: What only this inner attention takes (`index_sample`).
        """
        batch, length, keys_length = queries.shape[0], queries.shape[1], keys.shape[1]
        context, weights = self.inner_attention(
            self.query_projection(queries).view(batch, length, self.n_heads, -1),
            self.key_projection(keys).view(batch, keys_length, self.n_heads, -1),
            self.value_projection(values).view(batch, keys_length, self.n_heads, -1),
            attn_mask,
            tau=tau,
            delta=delta,
            **inner,
        )
        if self.mix:
            context = context.transpose(2, 1).contiguous()
        # The axes of `context` after the batch may be (L, H, D) or, from ProbAttention, (H, L, D): upstream reads
        # both with this one view.
        return self.out_projection(context.view(batch, length, -1)), weights


def require_self_attention(length: int, keys: int) -> None:
    """Checks, where both are numbers, that queries and keys are equally many.

    Raises:
        UsageError: They are not.
    """
    if type(length) is int and type(keys) is int and length != keys:
        raise UsageError(
            f"A causal mask needs as many queries as keys, but there are {length} queries and {keys} keys. "
            "Use mask_flag=False for cross-attention, or pass a mask."
        )
