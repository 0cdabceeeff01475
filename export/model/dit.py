"""DiT attention as CosyVoice has it: self and joint, RoPE on the merged heads, padded query rows zeroed.

Source: FunAudioLLM/CosyVoice, `cosyvoice/flow/DiT/modules.py` (Attention, AttnProcessor, JointAttnProcessor), which is
F5-TTS's, with the rotary embedding of lucidrains/x-transformers. Parameter and buffer names are theirs, so a published
state_dict of either class loads with `strict=True`. Reproduced because weights were trained with it: **RoPE is applied
before the head split**, on [B, N, H*D], to the first D channels, so head 0 alone rotates.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.errors import UsageError
from export.model import draw, rope
from export.model.form import Case, Form
from export.model.masks import add_optional_chunk_mask, key_padding

Rope = tuple[Tensor, Tensor | float | None]
"""Angles [1, N, D] interleaved, and the xPos scale [1, N, D] (a float or None means no scale)."""


class RotaryEmbedding(rope.Float32Buffers):
    """x-transformers' table of angles, computed for the length at hand; its buffers stay float32.

    Args:
        dim: Channels that rotate (the head size).
        use_xpos: Also scale queries up and keys down with distance from the middle (xPos).
        scale_base: Distance in positions over which the xPos scale applies once.
        theta: Base of the frequencies.

    Raises:
        UsageError: `dim` is odd.
    """

    float32_buffers = ("inv_freq", "scale")

    def __init__(self, dim: int, use_xpos: bool = False, scale_base: float = 512.0, theta: float = 10000.0) -> None:
        super().__init__()
        self.scale_base = scale_base
        self.register_buffer("inv_freq", rope.inverse_frequencies(dim, theta))
        self.register_buffer("scale", rope.xpos_base(dim) if use_xpos else None)

    def forward_from_seq_len(self, seq_len: int) -> Rope:
        """Returns (angles, scale) of positions 0..seq_len-1."""
        inv_freq = self.get_buffer("inv_freq")
        positions = torch.arange(seq_len, device=inv_freq.device).unsqueeze(0)
        freqs = rope.duplicate_interleaved(rope.angles(positions, inv_freq))
        base = self._buffers["scale"]
        if base is None:
            return freqs, 1.0
        return freqs, rope.xpos_scale(positions, seq_len // 2, base, self.scale_base)


class Attention(nn.Module):
    """Self attention over x, or joint attention over [x ; c] when a context c is given.

    Args:
        dim: Width of x.
        heads: H.
        dim_head: D; the inner width is H * D, which need not be `dim`.
        dropout: After the output projection, in training.
        context_dim: Width of the context c; None builds the self-attention parameters only.
        context_pre_only: None: c has no query; False: c has its own output projection; True: c is returned as
            attended, unprojected (the last block of a stack).
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        context_dim: int | None = None,
        context_pre_only: bool | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.context_pre_only = context_pre_only
        inner = heads * dim_head
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.joint = context_dim is not None and context_pre_only is not None
        if context_dim is not None:
            self.to_k_c = nn.Linear(context_dim, inner)
            self.to_v_c = nn.Linear(context_dim, inner)
            if context_pre_only is not None:
                self.to_q_c = nn.Linear(context_dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim), nn.Dropout(dropout)])
        if context_pre_only is False:
            self.to_out_c = nn.Linear(inner, dim)

    def forward(
        self,
        x: Tensor,
        c: Tensor | None = None,
        mask: Tensor | None = None,
        rope: Rope | None = None,
        c_rope: Rope | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the attended x [B, N, dim]; with a context, (x, c).

        Args:
            x: [B, N, dim].
            c: [B, M, context_dim].
            mask: bool, True = keep. [B, N] hides keys of x; [B, 1 or H, N, N] is used as it is (self attention
                only). Padded query rows of x come out as 0: those of a 2-D mask, or where a 4-D mask's first head
                hides the key from the last query. The context is never masked.
            rope: Angles (D of them) and xPos scale of x, from `RotaryEmbedding.forward_from_seq_len`.
            c_rope: The same for c, whose positions restart at 0.

        Raises:
            UsageError: The mask's rank is not one of these, a table is not D wide, or a context was given to a
                self-attention module.
        """
        if c is not None:
            return self._forward_joint(x, c, mask, rope, c_rope)
        query, key = self._rotated(self.to_q(x), self.to_k(x), rope)
        out = self._attend(query, key, self.to_v(x), _attention_mask(mask))
        out = self._project(out)
        if mask is None:
            return out
        rows = mask if mask.dim() == 2 else mask[:, 0, -1]
        return out.masked_fill(~rows.unsqueeze(-1), 0.0)

    def _forward_joint(
        self, x: Tensor, c: Tensor, mask: Tensor | None, rope: Rope | None, c_rope: Rope | None
    ) -> tuple[Tensor, Tensor]:
        if not self.joint:
            raise UsageError(
                "This DiT attention has no parameters for a context's queries. "
                "Build it with context_dim and context_pre_only to attend jointly."
            )
        if mask is not None and mask.dim() != 2:
            raise UsageError(
                f"A joint DiT attention takes a 2-D mask [B, N] of x's keys, not one of rank {mask.dim()}."
            )
        query, key = self._rotated(self.to_q(x), self.to_k(x), rope)
        c_query, c_key = self._rotated(self.to_q_c(c), self.to_k_c(c), c_rope)
        keep = None if mask is None else key_padding(F.pad(mask, (0, c.shape[1]), value=True))
        out = self._attend(
            torch.cat((query, c_query), dim=1),
            torch.cat((key, c_key), dim=1),
            torch.cat((self.to_v(x), self.to_v_c(c)), dim=1),
            keep,
        )
        length = x.shape[1]
        attended, context = self._project(out[:, :length]), out[:, length:]
        if self.context_pre_only is False:
            context = self.to_out_c(context)
        return (attended if mask is None else attended.masked_fill(~mask.unsqueeze(-1), 0.0)), context

    def _rotated(self, query: Tensor, key: Tensor, table: Rope | None) -> tuple[Tensor, Tensor]:
        """Returns query and key [B, N, H*D] with the first D channels of each rotated: head 0."""
        if table is None:
            return query, key
        freqs, scale = table
        if type(freqs.shape[-1]) is int and freqs.shape[-1] != self.dim_head:
            raise UsageError(
                f"The rotary table is {freqs.shape[-1]} channels wide, but the head size is {self.dim_head}. "
                "Build RotaryEmbedding with the head size."
            )
        cos, sin = freqs.cos(), freqs.sin()
        width = self.dim_head if self.heads > 1 else None
        q_scale, k_scale = (scale, scale**-1.0) if isinstance(scale, Tensor) else (None, None)
        return (
            rope.apply_rotary(query, cos, sin, rotate=rope.rotate_pairs, rotary_dim=width, scale=q_scale),
            rope.apply_rotary(key, cos, sin, rotate=rope.rotate_pairs, rotary_dim=width, scale=k_scale),
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        batch = key.shape[0]

        def split(t: Tensor) -> Tensor:
            return t.view(batch, -1, self.heads, self.dim_head).transpose(1, 2)

        if keep is not None:
            keep = keep.expand(batch, self.heads, query.shape[1], key.shape[1])
        out = F.scaled_dot_product_attention(split(query), split(key), split(value), attn_mask=keep)
        return out.transpose(1, 2).reshape(batch, -1, self.heads * self.dim_head)

    def _project(self, out: Tensor) -> Tensor:
        projected: Tensor = self.to_out[1](self.to_out[0](out))
        return projected


def _attention_mask(mask: Tensor | None) -> Tensor | None:
    """Returns the keep mask with four axes, ready to expand to [B, H, L, S].

    Raises:
        UsageError: The mask's rank is neither 2 nor 4.
    """
    if mask is None or mask.dim() == 4:
        return mask
    if mask.dim() == 2:
        return key_padding(mask)
    raise UsageError(
        f"A DiT attention takes a mask of rank 2 [B, N] or 4 [B, 1, N, N], not {mask.dim()} (a 3-D mask would be read "
        "as one mask a head). Insert the head axis: mask.unsqueeze(1)."
    )


class SelfAttentionBlock(nn.Module):
    """`Attention` with the rotary table its network hands it: the forms `dit*`."""

    def __init__(self, dim: int, heads: int, dim_head: int, use_xpos: bool = False) -> None:
        super().__init__()
        self.rotary_embed = RotaryEmbedding(dim_head, use_xpos=use_xpos)
        self.attn = Attention(dim, heads, dim_head)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the attended x [B, N, dim] under a mask [B, N] or [B, 1, N, N]."""
        attended: Tensor = self.attn(x, mask=mask, rope=self.rotary_embed.forward_from_seq_len(x.shape[1]))
        return attended


class JointAttentionBlock(nn.Module):
    """Joint `Attention` with the rotary tables of both streams: the form `dit-joint`."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_pre_only: bool = False) -> None:
        super().__init__()
        self.rotary_embed = RotaryEmbedding(dim_head)
        self.attn = Attention(dim, heads, dim_head, context_dim=dim, context_pre_only=context_pre_only)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attended (x [B, N, dim], c [B, M, dim]) under a key mask [B, N] of x."""
        tables = self.rotary_embed.forward_from_seq_len
        pair: tuple[Tensor, Tensor] = self.attn(x, c=c, mask=mask, rope=tables(x.shape[1]), c_rope=tables(c.shape[1]))
        return pair


EMBED, HEADS, HEAD_SIZE = 64, 3, 32  # H * D is not the width of x, as in CosyVoice
CHUNK = 16


def _draw(case: Case, *, context: bool = False, chunked: bool = False) -> dict[str, Tensor]:
    rng = draw.generator(case)
    batch, length = case.dims["batch"], case.dims["length"]
    inputs = {"x": draw.normal(case, rng, batch, length, EMBED)}
    if context:
        inputs["c"] = draw.normal(case, rng, batch, case.dims["context"], EMBED)
    keep = draw.keep_mask(case.padding, batch, length, rng)
    if chunked:
        # Opening the empty rows must not open the batch row that "full-row" hides on purpose.
        some = keep.any(-1)[:, None, None]
        keep = (add_optional_chunk_mask(keep.unsqueeze(1), CHUNK) & some).unsqueeze(1)
    return {**inputs, "mask": keep}


def _form(name: str, summary: str, make: Callable[[], nn.Module], **overrides: object) -> Form:
    sequence = {0: "batch", 1: "length"}
    rows: dict[str, object] = {
        "draw": _draw,
        "dynamic": {"x": sequence, "mask": sequence},
        "dims": {"batch": (1, 2, 8), "length": (1, 32, 128)},
        "ropes": 2,
        "notes": ("RoPE turns head 0 only: upstream applies it before the heads are split.",),
    }
    return Form(
        name=name,
        summary=summary,
        source="FunAudioLLM/CosyVoice cosyvoice/flow/DiT/modules.py",
        make=lambda: draw.seeded(make),
        padding=("right", "left", "full-row"),
        **{**rows, **overrides},  # type: ignore[arg-type]
    )


FORMS = (
    _form("dit", "DiT self attention, RoPE on head 0", lambda: SelfAttentionBlock(EMBED, HEADS, HEAD_SIZE)),
    _form(
        "dit-xpos",
        "as dit, RoPE with xPos scaling",
        lambda: SelfAttentionBlock(EMBED, HEADS, HEAD_SIZE, use_xpos=True),
    ),
    _form(
        "dit-joint",
        "DiT joint attention over [x ; c]",
        lambda: JointAttentionBlock(EMBED, HEADS, HEAD_SIZE),
        draw=lambda case: _draw(case, context=True),
        dynamic={
            "x": {0: "batch", 1: "length"},
            "c": {0: "batch", 1: "context"},
            "mask": {0: "batch", 1: "length"},
        },
        dims={"batch": (1, 2, 8), "length": (1, 32, 128), "context": (1, 8, 32)},
        ropes=4,
    ),
    _form(
        "dit-4d-mask",
        "as dit, with a chunk and padding mask [B, 1, N, N]",
        lambda: SelfAttentionBlock(EMBED, HEADS, HEAD_SIZE),
        draw=lambda case: _draw(case, chunked=True),
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 2: "length", 3: "length"}},
    ),
)
