"""The second tutorial dialect: wq, wk, wv, wo without bias and a causal buffer of -inf that is added to the scores.

The buffer is made once for the longest sequence and sliced to the one at hand, the softmax runs in float32 and is
cast back, and both the weights and the output have a dropout. Buffer and parameter names are upstream's. A sequence
longer than the buffer is refused with a sentence; upstream's slice would silently stop at the buffer's end.

Source: the MultiHeadAttention of datawhalechina/happy-llm (chapter 2), after karpathy/llama2.c `model.py`.
"""

import math

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from export.model.checks import head_size, require_length
from export.model.draw import generator, normal, seeded
from export.model.dtypes import upcast
from export.model.form import Case, Form


def additive_causal_mask(max_length: int, rank: int = 4) -> Tensor:
    """Returns -inf above the diagonal and 0 elsewhere, float32, [1, 1, M, M] or, with rank 3, [1, M, M].

    Raises:
        UsageError: `rank` is neither 3 nor 4.
    """
    if rank not in (3, 4):
        raise UsageError(f"The causal buffer has rank 3, [1, M, M], or rank 4, [1, 1, M, M]; {rank} was asked for.")
    return torch.triu(torch.full((1,) * (rank - 2) + (max_length, max_length), -math.inf), diagonal=1)


class MultiHeadAttention(nn.Module):
    """Multi-head attention, causal on request.

    Args:
        dim: Width E of the heads together and of the output.
        n_heads: Number of heads H.
        max_seq_len: Longest sequence M that the causal buffer serves.
        dropout: Dropout on the weights and on the output while training.
        is_causal: Hide later keys, by a buffer `mask`.
        mask_rank: Rank of that buffer, 3 or 4.
        n_embd: Width of the inputs; None means E.

    Raises:
        UsageError: `dim` is not divisible by `n_heads`, or the rank is neither 3 nor 4.
    """

    mask: Tensor

    def __init__(
        self,
        dim: int,
        n_heads: int,
        max_seq_len: int,
        dropout: float = 0.0,
        is_causal: bool = False,
        mask_rank: int = 4,
        n_embd: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_size(dim, n_heads)
        self.n_heads = n_heads
        self.max_seq_len = max_seq_len
        self.is_causal = is_causal
        self.wq = nn.Linear(n_embd or dim, dim, bias=False)
        self.wk = nn.Linear(n_embd or dim, dim, bias=False)
        self.wv = nn.Linear(n_embd or dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)
        if is_causal:
            self.register_buffer("mask", additive_causal_mask(max_seq_len, mask_rank))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the output [B, L, E], or (output, weights [B, H, L, S]) with `need_weights`.

        Args:
            q: [B, L, n_embd].
            k: [B, S, n_embd]; where causal, S = L.
            v: [B, S, n_embd].
            need_weights: Also return the weights.

        Raises:
            UsageError: The layer is causal and a sequence is longer than its buffer.
        """
        xq, xk, xv = self._split(self.wq(q)), self._split(self.wk(k)), self._split(self.wv(v))
        scores = torch.matmul(xq, xk.transpose(2, 3)) / math.sqrt(self.head_dim)
        if self.is_causal:
            queries, keys = q.shape[1], k.shape[1]
            for length in (queries, keys):
                require_length(length, self.max_seq_len, "the causal mask buffer (max_seq_len)")
            scores = scores + self.mask[..., :queries, :keys]
        weights = self.attn_dropout(torch.softmax(upcast(scores), dim=-1).type_as(xq))
        context = torch.matmul(weights, xv).transpose(1, 2)
        output = self.resid_dropout(self.wo(context.reshape(context.shape[0], -1, self.n_heads * self.head_dim)))
        return (output, weights) if need_weights else output

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.n_heads, self.head_dim).transpose(1, 2)


class SelfAttention(MultiHeadAttention):
    """The decoder block's call: one sequence."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns the output [B, L, E] for x [B, L, E]."""
        return super().forward(x, x, x)


WIDTH, HEADS, MAX_LENGTH = 64, 2, 64


def _draw(case: Case) -> dict[str, Tensor]:
    return {"x": normal(case, generator(case), case.dims["batch"], case.dims["length"], WIDTH)}


def _form(name: str, summary: str, mask_rank: int) -> Form:
    return Form(
        name=name,
        summary=summary,
        source="datawhalechina/happy-llm, chapter 2 (after karpathy/llama2.c model.py)",
        make=lambda: seeded(lambda: SelfAttention(WIDTH, HEADS, MAX_LENGTH, is_causal=True, mask_rank=mask_rank)),
        draw=_draw,
        dynamic={"x": {0: "batch", 1: "length"}},
        dims={"batch": (1, 2, 4), "length": (1, 32, MAX_LENGTH)},
        notes=(f"The causal buffer holds {MAX_LENGTH} positions; a longer sequence is an error.",),
    )


FORMS = (
    _form("gpt-causal", "causal attention by an added [1, 1, M, M] buffer of -inf, softmax in fp32", mask_rank=4),
    _form("gpt-rank3-mask", "as gpt-causal, with a rank-3 buffer [1, M, M]", mask_rank=3),
)
