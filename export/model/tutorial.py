"""Multi-head attention as tutorials write it: W_q, W_k, W_v, W_o, a 0/1 mask filled with -1e9, weights on request.

This is the class that most people's first transformer holds, so its spelling matters more than its speed: heads by
view and transpose, `mask == 0` on a mask of any dtype, -1e9 and not -inf. A query that sees no key therefore gets the
mean of V. `fused=True` is the same layer through PyTorch's own attention, where such a query gets 0.

Source: "Attention Is All You Need" (arXiv 1706.03762), as PyTorch tutorials spell it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.model.capturing import constant
from export.model.checks import head_size
from export.model.draw import generator, keep_mask, normal, seeded
from export.model.fills import finite_fill
from export.model.form import Case, Form


def scaled_dot_product_attention(
    Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None, dropout: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Returns (output [..., L, Dv], weights [..., L, S]) of softmax(Q K^T / sqrt(D)) V.

    Args:
        Q: Queries [..., L, D].
        K: Keys [..., S, D].
        V: Values [..., S, Dv].
        mask: 0 or False hides a key; broadcastable to [..., L, S], any dtype.
        dropout: Applied to the weights.
    """
    scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(constant(K.shape[-1]))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, finite_fill(-1e9, scores.dtype))
    weights = torch.softmax(scores, dim=-1)
    if dropout is not None:
        weights = dropout(weights)
    return torch.matmul(weights, V), weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention for self, cross and causal use.

    Args:
        d_model: Model width E.
        num_heads: Number of heads H.
        dropout: Dropout on the weights while training.
        fused: Call PyTorch's scaled_dot_product_attention; the weights are then not available.

    Raises:
        UsageError: `d_model` is not divisible by `num_heads`.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0, fused: bool = False) -> None:
        super().__init__()
        self.d_k = head_size(d_model, num_heads)
        self.num_heads = num_heads
        self.fused = fused
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the output [B, L, E], or (output, weights [B, H, L, S]) with `need_weights`.

        Args:
            Q: [B, L, E].
            K: [B, S, E].
            V: [B, S, E].
            mask: 0 or False hides a key; [B or 1, 1, L or 1, S].
            need_weights: Also return the weights; this takes the path by hand even when `fused`.
        """
        q, k, v = self._split(self.W_q(Q)), self._split(self.W_k(K)), self._split(self.W_v(V))
        if self.fused and not need_weights:
            # ONNX Runtime's CPU Attention refuses a mask whose query axis is 1, so that axis is written out.
            keep = None if mask is None else mask.to(torch.bool)
            if keep is not None:
                keep = keep.expand(keep.shape[0], keep.shape[1], q.shape[2], keep.shape[3])
            rate = self.dropout.p if self.training else 0.0
            return self._merge(functional.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=rate))
        context, weights = scaled_dot_product_attention(q, k, v, mask, self.dropout)
        output = self._merge(context)
        return (output, weights) if need_weights else output

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.num_heads, self.d_k).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        merged: Tensor = self.W_o(x.transpose(1, 2).contiguous().view(x.shape[0], -1, self.num_heads * self.d_k))
        return merged


class SelfAttention(MultiHeadAttention):
    """Self-attention with a key padding mask [B, 1, 1, L]."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns the output [B, L, E] for x [B, L, E]."""
        return super().forward(x, x, x, mask)


class CrossAttention(MultiHeadAttention):
    """Cross-attention with a padding mask [B, 1, 1, S] over the memory."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns the output [B, L, E] for x [B, L, E] and memory [B, S, E]."""
        return super().forward(x, memory, memory, mask)


class CausalSelfAttention(MultiHeadAttention):
    """Self-attention under a lower-triangular mask of ones and zeros, built for the length at hand."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns the output [B, L, E] for x [B, L, E]."""
        mask = torch.tril(torch.ones(x.shape[1], x.shape[1], device=x.device))
        return super().forward(x, x, x, mask.unsqueeze(0).unsqueeze(0))


class SelfAttentionWithWeights(MultiHeadAttention):
    """Self-attention that also hands out its weights, for a heat map of query rows by key columns."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns (output [B, L, E], weights [B, H, L, L]) for x [B, L, E] and mask [B, 1, 1, L]."""
        return super().forward(x, x, x, mask, need_weights=True)


WIDTH, HEADS = 64, 2


def _draw_self(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length = case.dims["batch"], case.dims["length"]
    x = normal(case, rng, batch, length, WIDTH)
    return {"x": x, "mask": keep_mask(case.padding, batch, length, rng)[:, None, None]}


def _draw_causal(case: Case) -> dict[str, Tensor]:
    return {"x": normal(case, generator(case), case.dims["batch"], case.dims["length"], WIDTH)}


def _draw_cross(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length, memory = case.dims["batch"], case.dims["length"], case.dims["memory"]
    return {
        "x": normal(case, rng, batch, length, WIDTH),
        "memory": normal(case, rng, batch, memory, WIDTH),
        "mask": keep_mask(case.padding, batch, memory, rng)[:, None, None],
    }


def _form(name: str, summary: str, build: Callable[[], nn.Module], **changes: Any) -> Form:
    common = Form(
        name=name,
        summary=summary,
        source='"Attention Is All You Need" (arXiv 1706.03762), in the spelling of PyTorch tutorials',
        make=lambda: seeded(build),
        draw=_draw_self,
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 3: "length"}},
        dims={"batch": (1, 2, 4), "length": (1, 32, 64)},
        padding=("right", "left", "full-row"),
        notes=(
            "A query that sees no key gets the mean of V: the fill is -1e9 (-32768 in fp16, which ends at -65504).",
        ),
    )
    return replace(common, **changes)


FORMS = (
    _form(
        "tutorial-mha",
        "the tutorials' multi-head self-attention, padding mask filled with -1e9",
        lambda: SelfAttention(WIDTH, HEADS),
    ),
    _form(
        "tutorial-cross",
        "as tutorial-mha, cross-attention, queries and keys of different lengths",
        lambda: CrossAttention(WIDTH, HEADS),
        draw=_draw_cross,
        dynamic={
            "x": {0: "batch", 1: "length"},
            "memory": {0: "batch", 1: "memory"},
            "mask": {0: "batch", 3: "memory"},
        },
        dims={"batch": (1, 2, 4), "length": (1, 32, 64), "memory": (1, 24, 64)},
    ),
    _form(
        "tutorial-causal",
        "as tutorial-mha, under a tril mask built in the graph",
        lambda: CausalSelfAttention(WIDTH, HEADS),
        draw=_draw_causal,
        dynamic={"x": {0: "batch", 1: "length"}},
        padding=(),
        notes=(),
    ),
    _form(
        "tutorial-weights",
        "as tutorial-mha, attention weights returned as a second output",
        lambda: SelfAttentionWithWeights(WIDTH, HEADS),
    ),
    _form(
        "tutorial-sdpa",
        "as tutorial-mha, through PyTorch's scaled_dot_product_attention",
        lambda: SelfAttention(WIDTH, HEADS, fused=True),
        notes=("A query that sees no key gets 0, where the same layer by hand gets the mean of V.",),
    ),
)
