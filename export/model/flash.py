"""Packed attention as FlashAttention's users write it: one projection to q, k and v, then causal fused attention.

`Wqkv` and `out_proj` are the names of flash-attn's MHA, whose kernel takes q, k and v packed as [B, L, 3, H, D]. Here
the fused step is PyTorch's scaled_dot_product_attention, the same function without the package.

Source: Dao-AILab/flash-attention `flash_attn/modules/mha.py`; FlashAttention-2 (arXiv 2307.08691).
"""

from torch import Tensor, nn
from torch.nn import functional

from export.model.checks import head_size
from export.model.draw import generator, normal, seeded
from export.model.form import Case, Form


class MHA(nn.Module):
    """Self-attention with packed q, k, v.

    Args:
        embed_dim: Model width E.
        num_heads: Number of heads H.
        qkv_proj_bias: Whether `Wqkv` has a bias.
        out_proj_bias: Whether `out_proj` has one.
        dropout: Dropout on the weights while training.
        softmax_scale: Scale of the scores; None means 1 / sqrt(D).
        causal: Hide later keys.

    Raises:
        UsageError: `embed_dim` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        dropout: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_size(embed_dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.Wqkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_proj_bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=out_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, L, E] for x [B, L, E]."""
        batch, length = x.shape[0], x.shape[1]
        packed = self.Wqkv(x).view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            scale=self.softmax_scale,
        )
        output: Tensor = self.out_proj(context.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))
        return output


WIDTH, HEADS = 64, 2


def _draw(case: Case) -> dict[str, Tensor]:
    return {"x": normal(case, generator(case), case.dims["batch"], case.dims["length"], WIDTH)}


FORMS = (
    Form(
        name="flash-packed",
        summary="one projection to packed q, k, v, then causal scaled_dot_product_attention",
        source="Dao-AILab/flash-attention flash_attn/modules/mha.py",
        make=lambda: seeded(lambda: MHA(WIDTH, HEADS, causal=True)),
        draw=_draw,
        dynamic={"x": {0: "batch", 1: "length"}},
        dims={"batch": (1, 2, 4), "length": (1, 32, 64)},
    ),
)
