"""Multi-head attention as "Dive into Deep Learning" writes it: heads merged into the batch, bmm, valid lengths, -1e6.

The mask is given as how many keys are valid, per sequence or per query, and masked scores are set to -1e6 (so a query
with no valid key gets the mean of V). Upstream repeats the lengths with `repeat_interleave`; with a symbolic count
that exports to a graph which fails at every shape, so here lengths are expanded, which is the same numbers.

Source: d2l.ai, chapters "Attention Scoring Functions" and "Multi-Head Attention" (`d2l/torch.py`).
"""

import math

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from export.model import masks
from export.model.capturing import constant
from export.model.checks import head_size
from export.model.draw import generator, keep_mask, normal, seeded
from export.model.fills import finite_fill
from export.model.form import Case, Form


def masked_softmax(scores: Tensor, valid_lens: Tensor | None) -> Tensor:
    """Returns softmax over the last axis with keys from `valid_lens` on set to -1e6.

    Args:
        scores: [N, L, S].
        valid_lens: Valid keys, integer [N] (for all queries alike) or [N, L]; None masks nothing.

    Raises:
        UsageError: `valid_lens` has another rank.
    """
    if valid_lens is None:
        return torch.softmax(scores, dim=-1)
    if valid_lens.dim() not in (1, 2):
        raise UsageError(f"valid_lens has shape {tuple(valid_lens.shape)}. Pass [B] or [B, L].")
    per_query = valid_lens.unsqueeze(1) if valid_lens.dim() == 1 else valid_lens
    hidden = masks.make_pad_mask(per_query, scores.shape[-1])
    return torch.softmax(scores.masked_fill(hidden, finite_fill(-1e6, scores.dtype)), dim=-1)


class DotProductAttention(nn.Module):
    """Scaled dot-product attention on [N, L, D]; keeps its last weights in `attention_weights`, as upstream does."""

    attention_weights: Tensor | None

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.attention_weights = None

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, valid_lens: Tensor | None = None) -> Tensor:
        """Returns [N, L, Dv] for queries [N, L, D], keys [N, S, D], values [N, S, Dv]; see `masked_softmax`."""
        scores = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(constant(queries.shape[-1]))
        weights = masked_softmax(scores, valid_lens)
        # An exporter's symbolic tensors must not outlive its run.
        self.attention_weights = None if torch.compiler.is_compiling() else weights
        return torch.bmm(self.dropout(weights), values)


class MultiHeadAttention(nn.Module):
    """Multi-head attention over valid lengths.

    Args:
        num_hiddens: Width E of the heads together and of the output.
        num_heads: Number of heads H.
        dropout: Dropout on the weights while training.
        bias: Whether the four projections have a bias.
        query_size: Width of the queries; None means E. Likewise `key_size` and `value_size`.
        key_size: See `query_size`.
        value_size: See `query_size`.

    Raises:
        UsageError: `num_hiddens` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        num_hiddens: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = False,
        query_size: int | None = None,
        key_size: int | None = None,
        value_size: int | None = None,
    ) -> None:
        super().__init__()
        self.head_size = head_size(num_hiddens, num_heads)
        self.num_heads = num_heads
        self.attention = DotProductAttention(dropout)
        self.W_q = nn.Linear(query_size or num_hiddens, num_hiddens, bias=bias)
        self.W_k = nn.Linear(key_size or num_hiddens, num_hiddens, bias=bias)
        self.W_v = nn.Linear(value_size or num_hiddens, num_hiddens, bias=bias)
        self.W_o = nn.Linear(num_hiddens, num_hiddens, bias=bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, valid_lens: Tensor | None = None) -> Tensor:
        """Returns [B, L, E]; the weights [B * H, L, S] are then in `attention.attention_weights`.

        Args:
            queries: [B, L, query_size].
            keys: [B, S, key_size].
            values: [B, S, value_size].
            valid_lens: Valid keys, integer [B] or [B, L].
        """
        if valid_lens is not None:
            valid_lens = self._per_head(valid_lens)
        merged = self.attention(
            self._to_batch(self.W_q(queries)),
            self._to_batch(self.W_k(keys)),
            self._to_batch(self.W_v(values)),
            valid_lens,
        )
        output: Tensor = self.W_o(self._from_batch(merged))
        return output

    def _per_head(self, valid_lens: Tensor) -> Tensor:
        """Returns [B, ...] with each row once per head, [B * H, ...]."""
        return torch.stack((valid_lens,) * self.num_heads, dim=1).flatten(0, 1)

    def _to_batch(self, x: Tensor) -> Tensor:
        """Returns [B, N, E] as [B * H, N, D]."""
        split = x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_size).permute(0, 2, 1, 3)
        return split.reshape(-1, split.shape[2], self.head_size)

    def _from_batch(self, x: Tensor) -> Tensor:
        """Returns [B * H, N, D] as [B, N, E]."""
        split = x.reshape(-1, self.num_heads, x.shape[1], self.head_size).permute(0, 2, 1, 3)
        return split.reshape(split.shape[0], split.shape[1], self.num_heads * self.head_size)


WIDTH, HEADS = 64, 2


def _lengths(case: Case, rng: torch.Generator, *shape: int) -> Tensor:
    """Returns how many keys are valid, int64 `shape`: what the case's padding keeps of them."""
    rows = math.prod(shape)
    lengths = keep_mask(case.padding, rows, case.dims["memory"], rng).sum(-1).view(shape)
    if case.padding == "full-row":
        lengths[-1] = 0
    return lengths


def _draw(case: Case, per_query: bool) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length, memory = case.dims["batch"], case.dims["length"], case.dims["memory"]
    return {
        "queries": normal(case, rng, batch, length, WIDTH),
        "keys": normal(case, rng, batch, memory, WIDTH),
        "values": normal(case, rng, batch, memory, WIDTH),
        "valid_lens": _lengths(case, rng, batch, length) if per_query else _lengths(case, rng, batch),
    }


def _form(name: str, summary: str, per_query: bool) -> Form:
    return Form(
        name=name,
        summary=summary,
        source='d2l.ai, "Multi-Head Attention" (d2l/torch.py)',
        make=lambda: seeded(lambda: MultiHeadAttention(WIDTH, HEADS)),
        draw=lambda case: _draw(case, per_query),
        dynamic={
            "queries": {0: "batch", 1: "length"},
            "keys": {0: "batch", 1: "memory"},
            "values": {0: "batch", 1: "memory"},
            "valid_lens": {0: "batch", 1: "length"} if per_query else {0: "batch"},
        },
        dims={"batch": (1, 2, 4), "length": (1, 32, 64), "memory": (1, 24, 64)},
        padding=("right", "full-row"),
        notes=(
            "A query with no valid key gets the mean of V: the fill is -1e6 (-32768 in fp16, which ends at -65504).",
        ),
    )


FORMS = (
    _form("d2l-mha", "heads merged into the batch, bmm, valid lengths per sequence filled with -1e6", per_query=False),
    _form("d2l-mha-per-query", "as d2l-mha, valid lengths per query", per_query=True),
)
