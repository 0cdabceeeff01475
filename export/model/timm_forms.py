"""The forms of the timm family: which configurations are exported, and the patches around the RoPE sibling."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from export.model import draw, rope
from export.model.form import Case, Form
from export.model.timm import Attention, AttentionRope, RmsNorm, layer_norm

EMBED, HEADS = 96, 4


class PatchRope(rope.Float32Buffers):
    """timm's `RotaryEmbeddingCat` in its "language" mode, for an image of fixed width and any number of patches.

    Args:
        dim: Head size D, divisible by 4 (half its pairs turn with the row, half with the column).
        grid_width: Patches in a row.
        rotate_half: Lay the table out for `rotate_halves`.
        temperature: Base of the frequencies.

    Raises:
        UsageError: D is not divisible by 4.
    """

    float32_buffers = ("bands",)

    def __init__(self, dim: int, grid_width: int, rotate_half: bool = False, temperature: float = 10000.0) -> None:
        super().__init__()
        if dim % 4:
            raise UsageError(
                f"Axial RoPE gives rows and columns a quarter of the head size each, and {dim} is not divisible by 4. "
                "Choose a head size that is."
            )
        self.grid_width = grid_width
        self.duplicate = rope.duplicate_half if rotate_half else rope.duplicate_interleaved
        self.register_buffer("bands", rope.inverse_frequencies(dim // 2, temperature), persistent=False)

    def get_embed(self, patches: int) -> Tensor:
        """Returns [sin | cos] of patches 0..P-1 in row-major order, float32 [P, 2 D]."""
        bands = self.get_buffer("bands")
        positions = torch.arange(patches, device=bands.device)
        columns = torch.remainder(positions, self.grid_width)
        rows = torch.div((positions - columns).to(bands.dtype), self.grid_width)
        return rope.axial_embedding(rows, columns, bands, duplicate=self.duplicate)


class PatchAttention(nn.Module):
    """A class token in front of the patches, their axial RoPE, and `AttentionRope`, as a vision transformer does."""

    def __init__(self, dim: int, num_heads: int, grid_width: int, rotate_half: bool = False) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.attn = AttentionRope(dim, num_heads, num_prefix_tokens=1, rotate_half=rotate_half)
        self.rope = PatchRope(self.attn.head_dim, grid_width, rotate_half)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attended tokens [B, 1 + P, dim] of patches x [B, P, dim]."""
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        attended: Tensor = self.attn(tokens, rope=self.rope.get_embed(x.shape[1]))
        return attended


def _with_drawn_norms(module: nn.Module) -> nn.Module:
    """Returns the module with its norms' weights drawn: left at 1 and 0, a norm lost on the way would go unseen."""
    for part in (module.q_norm, module.k_norm):
        for parameter in part.parameters():  # type: ignore[union-attr]
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module


def _draw(case: Case, *, masked: bool = False) -> dict[str, Tensor]:
    rng = draw.generator(case)
    batch, length = case.dims["batch"], case.dims["length"]
    inputs = {"x": draw.normal(case, rng, batch, length, EMBED)}
    if masked:
        keep = draw.keep_mask(case.padding, batch, length, rng)
        inputs["attn_mask"] = keep[:, None, None, :].expand(-1, -1, length, -1).contiguous()
    return inputs


def _form(name: str, summary: str, make: Callable[[], nn.Module], *, masked: bool = False, **more: object) -> Form:
    dynamic: dict[str, dict[int, str]] = {"x": {0: "batch", 1: "length"}}
    if masked:
        dynamic["attn_mask"] = {0: "batch", 2: "length", 3: "length"}
    return Form(
        name=name,
        summary=summary,
        source="huggingface/pytorch-image-models timm/layers/attention.py",
        make=lambda: draw.seeded(make),
        draw=lambda case: _draw(case, masked=masked),
        dynamic=dynamic,
        dims={"batch": (1, 2, 8), "length": (1, 32, 128)},
        padding=("right", "left", "full-row") if masked else (),
        **more,  # type: ignore[arg-type]
    )


def _normed(norm_layer: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: _with_drawn_norms(Attention(EMBED, HEADS, qk_norm=True, norm_layer=norm_layer))


FORMS = (
    _form("timm", "ViT attention by hand, packed qkv", lambda: Attention(EMBED, HEADS, qkv_bias=True)),
    _form(
        "timm-mask",
        "as timm, with a mask [B, 1, N, N]",
        lambda: Attention(EMBED, HEADS, qkv_bias=True),
        masked=True,
        notes=("A query that sees no key is NaN: the mask is added as -inf to a softmax by hand.",),
    ),
    _form("timm-qknorm", "as timm, q and k layer-normed over the head", _normed(layer_norm)),
    _form("timm-qknorm-rms", "as timm, q and k RMS-normed over the head", _normed(RmsNorm)),
    _form(
        "timm-sdpa",
        "as timm-mask, spelled as scaled_dot_product_attention",
        lambda: Attention(EMBED, HEADS, qkv_bias=True, fused_attn=True),
        masked=True,
    ),
    _form(
        "timm-rope",
        "ViT attention with axial RoPE on adjacent pairs, class token not rotated",
        lambda: PatchAttention(EMBED, HEADS, grid_width=8),
        ropes=2,
    ),
    _form(
        "timm-rope-half",
        "as timm-rope, RoPE on halves",
        lambda: PatchAttention(EMBED, HEADS, grid_width=8, rotate_half=True),
        ropes=2,
    ),
)
