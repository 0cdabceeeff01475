"""The default form: multi-head self-attention with a key-padding mask, optional causality and RoPE.

This is the attention of the README. One module has two spellings of the same formula, chosen by `fused`: by hand
(matmul, scale, masked_fill, softmax, matmul), as most models in the wild are written, and
`scaled_dot_product_attention`. They differ in one place only: a query that may see no key at all is NaN by hand and 0
in the other.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.errors import UsageError
from export.model import draw, rope
from export.model.checks import head_size, require_even, require_length
from export.model.form import Case, Form
from export.model.masks import key_padding, subsequent_mask

Layout = Literal["half", "interleaved"]

LAYOUTS: dict[Layout, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "half": (rope.duplicate_half, rope.rotate_halves),
    "interleaved": (rope.duplicate_interleaved, rope.rotate_pairs),
}
"""For each pairing of channels: how its tables are laid out, and how it turns a vector."""


class RotaryTables(rope.Float32Buffers):
    """Cosine and sine of every position up to `max_length`, float32 whatever the module around them becomes.

    Args:
        head_size: D.
        rotary_dim: Channels that rotate, even and at most D.
        max_length: Positions the tables hold.
        layout: How channels are paired.
        theta: Base of the frequencies.
    """

    float32_buffers = ("cos", "sin")

    def __init__(
        self, head_size: int, rotary_dim: int, max_length: int, layout: Layout = "half", theta: float = 10000.0
    ) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim if rotary_dim < head_size else None
        duplicate, self.rotate = LAYOUTS[layout]
        cos, sin = rope.cos_sin_tables(max_length, rotary_dim, theta)
        self.register_buffer("cos", duplicate(cos), persistent=False)
        self.register_buffer("sin", duplicate(sin), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [B, H, S, D] rotated by position, in x's dtype.

        Raises:
            UsageError: S is beyond the tables (see `require_length` for what an exported graph does then).
        """
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        length = x.shape[-2]
        require_length(length, cos.shape[0], "the RoPE table (max_length)")
        return rope.apply_rotary(x, cos[:length], sin[:length], rotate=self.rotate, rotary_dim=self.rotary_dim)


class MultiHeadAttention(nn.Module):
    """softmax(RoPE(Q) RoPE(K)^T / sqrt(D) + mask) V per head, with input and output projections.

    Args:
        embed_dim: Model width E = H * D.
        num_heads: H.
        rotary: How RoPE pairs channels, or None for no RoPE.
        rotary_dim: Channels of each head that rotate (partial rotary); all by default.
        causal: Query i sees keys 0..i only.
        fused: Spell the core as `scaled_dot_product_attention` instead of by hand.
        return_weights: Also return the attention weights, e.g. to plot them; needs the spelling by hand.
        max_length: Positions the RoPE tables hold.
        theta: Base of the RoPE frequencies.

    Raises:
        UsageError: E is not divisible by H, the rotary width is odd or above D, or weights are asked of the fused
            spelling.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        rotary: Layout | None = "half",
        rotary_dim: int | None = None,
        causal: bool = False,
        fused: bool = False,
        return_weights: bool = False,
        max_length: int = 2048,
        theta: float = 10000.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size(embed_dim, num_heads)
        self.scale = self.head_size**-0.5
        self.causal = causal
        self.fused = fused
        self.return_weights = return_weights
        if fused and return_weights:
            raise UsageError(
                "scaled_dot_product_attention never holds the attention weights, so it cannot return them. "
                "Use fused=False with return_weights=True."
            )
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.rope: RotaryTables | None = None
        if rotary is not None:
            width = self.head_size if rotary_dim is None else rotary_dim
            require_even(width, "head size" if rotary_dim is None else "rotary width")
            if width > self.head_size:
                raise UsageError(
                    f"RoPE cannot rotate {width} channels of a head that has {self.head_size}. Lower rotary_dim."
                )
            self.rope = RotaryTables(self.head_size, width, max_length, rotary, theta)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the attended sequence [B, S, E], with `return_weights` also the weights [B, H, S, S].

        Args:
            x: [B, S, E].
            mask: Key padding, bool [B, S], True = keep; None keeps every key.

        Raises:
            UsageError: S is beyond the RoPE tables.
        """
        batch, length, width = x.shape

        def heads(t: Tensor) -> Tensor:
            return t.view(batch, length, self.num_heads, self.head_size).transpose(1, 2)

        query, key, value = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        if self.rope is not None:
            query, key = self.rope(query), self.rope(key)
        keep = None if mask is None else key_padding(mask)
        weights = None
        if self.fused:
            out = self._fused(query, key, value, keep)
        else:
            weights = self._weights(query, key, keep)
            out = weights @ value
        out = self.out_proj(out.transpose(1, 2).reshape(batch, length, width))
        return (out, weights) if self.return_weights and weights is not None else out

    def _weights(self, query: Tensor, key: Tensor, keep: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-2, -1) * self.scale
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        if self.causal:
            scores = scores.masked_fill(~subsequent_mask(query.shape[-2], query.device), float("-inf"))
        return torch.softmax(scores, dim=-1)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        length = query.shape[-2]
        # ONNX Runtime's CPU Attention refuses a mask whose query axis is 1, so that axis is written out.
        keep = keep & subsequent_mask(length, query.device) if self.causal else keep.expand(-1, -1, length, -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=keep)


def _draw(case: Case) -> dict[str, Tensor]:
    rng = draw.generator(case)
    batch, length = case.dims["batch"], case.dims["length"]
    x = draw.normal(case, rng, batch, length, 128)
    return {"x": x, "mask": draw.keep_mask(case.padding, batch, length, rng)}


def _form(name: str, summary: str, *, notes: tuple[str, ...] = (), fused: bool = False, **options: object) -> Form:
    def make() -> MultiHeadAttention:
        return MultiHeadAttention(128, 2, fused=fused, **options)  # type: ignore[arg-type]

    by_hand = "A query that sees no key is NaN: a softmax by hand over -inf alone."
    by_sdpa = "A query that sees no key is 0 before the output projection, as in scaled_dot_product_attention."
    return Form(
        name=name,
        summary=summary,
        source="this project's README; RoPE as in RoFormer (arXiv 2104.09864)",
        make=lambda: draw.seeded(make),
        draw=_draw,
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
        dims={"batch": (1, 2, 8), "length": (1, 32, 128)},
        ropes=2,
        padding=("right", "left", "full-row"),
        notes=(by_sdpa if fused else by_hand, *notes),
    )


FORMS = (
    _form("mha-rope", "multi-head attention by hand, key padding, rotate-half RoPE"),
    _form("mha-rope-causal", "as mha-rope, causal as well", causal=True),
    _form("mha-rope-sdpa", "as mha-rope, spelled as scaled_dot_product_attention", fused=True),
    _form("mha-rope-interleaved", "as mha-rope, RoPE on adjacent pairs of channels", rotary="interleaved"),
    _form("mha-rope-partial", "as mha-rope, RoPE on the first 16 of 64 channels", rotary_dim=16),
)
