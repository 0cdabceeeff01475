"""LLaMA-style attention: interleaved RoPE in float32, grouped key/value heads, causal and key-padding masks.

The rotation is a complex product in real arithmetic, applied before the head transpose and before the key/value heads
are repeated; query head h uses key/value head h // n_rep. Names are upstream's. With left padding the first queries
see no key at all: by hand that is softmax over -inf alone, NaN; through PyTorch's attention it is 0.

Source: karpathy/llama2.c `model.py`, and datawhalechina/happy-llm chapter 5 for the key-padding mask.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.errors import UsageError
from export.model import masks, rope
from export.model.checks import head_size, require_length
from export.model.draw import generator, keep_mask, normal, seeded
from export.model.dtypes import upcast
from export.model.form import Case, Form
from export.model.minigpt import additive_causal_mask


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """Returns x [B, S, Hkv, D] with each head repeated n_rep times in place, [B, S, Hkv * n_rep, D]."""
    if n_rep == 1:
        return x
    batch, length, heads, size = x.shape
    return x.unsqueeze(3).expand(batch, length, heads, n_rep, size).reshape(batch, length, heads * n_rep, size)


class Attention(nn.Module):
    """Grouped-query attention, always causal.

    Args:
        dim: Model width E.
        n_heads: Query heads H.
        n_kv_heads: Key/value heads; None means H.
        max_seq_len: Longest sequence that the causal buffer serves (by hand only).
        dropout: Dropout on the weights and on the output while training.
        flash: Use PyTorch's scaled_dot_product_attention, as upstream does where it exists; False is the path by
            hand, with its additive buffer `mask` and a softmax in float32.

    Raises:
        UsageError: The heads do not divide the width, or the key/value heads the query heads.
    """

    mask: Tensor

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        max_seq_len: int = 2048,
        dropout: float = 0.0,
        flash: bool = True,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if self.n_kv_heads <= 0 or n_heads % self.n_kv_heads:
            raise UsageError(
                f"{n_heads} query heads cannot share {self.n_kv_heads} key/value heads evenly. "
                "Choose a number of key/value heads that divides the query heads."
            )
        self.n_rep = n_heads // self.n_kv_heads
        self.head_dim = head_size(dim, n_heads)
        self.max_seq_len = max_seq_len
        self.flash = flash
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)
        if not flash:
            self.register_buffer("mask", additive_causal_mask(max_seq_len))

    def forward(
        self,
        x: Tensor,
        freqs_cos: Tensor,
        freqs_sin: Tensor,
        attention_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the output [B, L, E], or (output, weights [B, H, L, L]) with `need_weights`.

        Args:
            x: [B, L, E].
            freqs_cos: Cosines, float32 [L, D/2].
            freqs_sin: Sines, float32 [L, D/2].
            attention_mask: True or 1 = keep, [B, L].
            need_weights: Also return the weights; only the path by hand has them.

        Raises:
            UsageError: The sequence is longer than the causal buffer, or weights are asked of the fused path.
        """
        batch, length = x.shape[0], x.shape[1]
        query = self.wq(x).view(batch, length, self.n_heads, self.head_dim)
        key = self.wk(x).view(batch, length, self.n_kv_heads, self.head_dim)
        value = self.wv(x).view(batch, length, self.n_kv_heads, self.head_dim)
        cos, sin = freqs_cos.unsqueeze(1), freqs_sin.unsqueeze(1)
        query, key = rope.apply_rotary_real(query, cos, sin), rope.apply_rotary_real(key, cos, sin)
        key, value = repeat_kv(key, self.n_rep), repeat_kv(value, self.n_rep)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        keep = None if attention_mask is None else masks.key_padding(attention_mask.to(torch.bool))
        if self.flash:
            if need_weights:
                raise UsageError("The fused path has no attention weights. Build the layer with flash=False.")
            context = self._fused(query, key, value, keep)
            return self._project(context)
        weights = self._weights(query, key, keep)
        output = self._project(torch.matmul(weights, value))
        return (output, weights) if need_weights else output

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        rate = self.attn_dropout.p if self.training else 0.0
        if keep is None:
            return functional.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        visible = masks.subsequent_mask(query.shape[2], query.device) & keep
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=rate)

    def _weights(self, query: Tensor, key: Tensor, keep: Tensor | None) -> Tensor:
        length = query.shape[2]
        require_length(length, self.max_seq_len, "the causal mask buffer (max_seq_len)")
        scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(self.head_dim)
        scores = scores + self.mask[:, :, :length, :length]
        if keep is not None:
            scores = scores.masked_fill(~keep, -math.inf)
        weights: Tensor = self.attn_dropout(torch.softmax(upcast(scores), dim=-1).type_as(query))
        return weights

    def _project(self, context: Tensor) -> Tensor:
        merged = context.transpose(1, 2).reshape(context.shape[0], -1, self.n_heads * self.head_dim)
        output: Tensor = self.resid_dropout(self.wo(merged))
        return output


class SelfAttention(rope.Float32Buffers, Attention):
    """The layer with the tables its model would hand it, float32 whatever the module's dtype.

    The tables are buffers that the state dict leaves out, as in upstream's model. Arguments as for `Attention`.
    """

    float32_buffers = ("freqs_cos", "freqs_sin")
    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(
        self, dim: int, n_heads: int, n_kv_heads: int | None = None, max_seq_len: int = 2048, flash: bool = True
    ) -> None:
        super().__init__(dim, n_heads, n_kv_heads, max_seq_len, flash=flash)
        cos, sin = rope.cos_sin_tables(max_seq_len, self.head_dim)
        self.register_buffer("freqs_cos", cos, persistent=False)
        self.register_buffer("freqs_sin", sin, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns the output [B, L, E] for x [B, L, E] and key padding mask [B, L].

        Raises:
            UsageError: The sequence is longer than the tables.
        """
        length = x.shape[1]
        require_length(length, self.max_seq_len, "the RoPE table (max_seq_len)")
        return super().forward(x, self.freqs_cos[:length], self.freqs_sin[:length], mask)


WIDTH, HEADS, KV_HEADS, MAX_LENGTH = 64, 4, 2, 64


def _draw(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length = case.dims["batch"], case.dims["length"]
    return {
        "x": normal(case, rng, batch, length, WIDTH),
        "mask": keep_mask(case.padding, batch, length, rng),
    }


def _form(name: str, summary: str, flash: bool, note: str) -> Form:
    return Form(
        name=name,
        summary=summary,
        source="karpathy/llama2.c model.py; datawhalechina/happy-llm, chapter 5",
        make=lambda: seeded(lambda: SelfAttention(WIDTH, HEADS, KV_HEADS, MAX_LENGTH, flash=flash)),
        draw=_draw,
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
        dims={"batch": (1, 2, 4), "length": (1, 32, MAX_LENGTH)},
        ropes=2,
        padding=("right", "left", "full-row"),
        notes=(note, f"RoPE tables hold {MAX_LENGTH} positions; a longer sequence is an error."),
    )


FORMS = (
    _form(
        "llama-gqa",
        "grouped-query attention by hand: interleaved RoPE, repeated key/value heads, causal and padding masks",
        False,
        "A query that sees no key (left padding) is NaN: softmax over -inf alone.",
    ),
    _form(
        "llama-gqa-sdpa",
        "as llama-gqa, through scaled_dot_product_attention with one combined mask",
        True,
        "A query that sees no key (left padding) is 0.",
    ),
)
