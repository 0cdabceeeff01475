"""Linear attention: phi(q) (phi(k)^T v) over phi(q) sum(phi(k)), phi = elu + 1. Cost grows with n, not n^2.

There is no softmax and no [L, S] matrix: keys and values are first summed into one [D, Dv] matrix per head, which
every query then reads. It is not softmax attention and nothing may fuse it into one. The sums run in at least
float32 and are cast back, since a sum of products over the sequence leaves float16's range.

Source: "Transformers are RNNs" (arXiv 2006.16236); names as in idiap/fast-transformers' AttentionLayer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.model.checks import head_size
from export.model.draw import generator, keep_mask, normal, seeded
from export.model.dtypes import upcast
from export.model.form import Case, Form


def feature_map(x: Tensor) -> Tensor:
    """Returns elu(x) + 1, positive everywhere."""
    return functional.elu(x) + 1


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Returns phi(q) (phi(k)^T v) / (phi(q) sum(phi(k)) + eps), [B, H, L, Dv] in the dtype of `query`.

    Args:
        query: [B, H, L, D].
        key: [B, H, S, D].
        value: [B, H, S, Dv].
        keep: True = keep, [B, S]; a query that sees no key gets 0.
        eps: Keeps the quotient finite.
    """
    phi_q, phi_k = feature_map(upcast(query)), feature_map(upcast(key))
    if keep is not None:
        phi_k = phi_k * keep.unsqueeze(1).unsqueeze(-1).to(phi_k.dtype)
    summary = torch.matmul(phi_k.transpose(-2, -1), upcast(value))
    total = phi_k.sum(dim=2).unsqueeze(-1)
    return (torch.matmul(phi_q, summary) / (torch.matmul(phi_q, total) + eps)).to(query.dtype)


class AttentionLayer(nn.Module):
    """Multi-head linear attention.

    Args:
        d_model: Model width E.
        n_heads: Number of heads H.
        eps: Keeps the quotient finite.

    Raises:
        UsageError: `d_model` is not divisible by `n_heads`.
    """

    def __init__(self, d_model: int, n_heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.head_size = head_size(d_model, n_heads)
        self.n_heads = n_heads
        self.eps = eps
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns [B, L, E].

        Args:
            queries: [B, L, E].
            keys: [B, S, E].
            values: [B, S, E].
            mask: True = keep, [B, S].
        """
        context = linear_attention(
            self._split(self.query_projection(queries)),
            self._split(self.key_projection(keys)),
            self._split(self.value_projection(values)),
            mask,
            self.eps,
        ).transpose(1, 2)
        output: Tensor = self.out_projection(context.reshape(context.shape[0], -1, self.n_heads * self.head_size))
        return output

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.n_heads, self.head_size).transpose(1, 2)


WIDTH, HEADS = 64, 2


def _draw(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length, memory = case.dims["batch"], case.dims["length"], case.dims["memory"]
    return {
        "queries": normal(case, rng, batch, length, WIDTH),
        "keys": normal(case, rng, batch, memory, WIDTH),
        "values": normal(case, rng, batch, memory, WIDTH),
        "mask": keep_mask(case.padding, batch, memory, rng),
    }


FORMS = (
    Form(
        name="linear-attention",
        summary="linear attention, phi = elu + 1: O(n), no softmax, never fused",
        source='"Transformers are RNNs" (arXiv 2006.16236); idiap/fast-transformers',
        make=lambda: seeded(lambda: AttentionLayer(WIDTH, HEADS)),
        draw=_draw,
        dynamic={
            "queries": {0: "batch", 1: "length"},
            "keys": {0: "batch", 1: "memory"},
            "values": {0: "batch", 1: "memory"},
            "mask": {0: "batch", 1: "memory"},
        },
        dims={"batch": (1, 2, 4), "length": (1, 32, 64), "memory": (1, 24, 64)},
        attentions=0,
        padding=("right", "left", "full-row"),
        notes=(
            "Not softmax attention: exported and run, reported as such, never fused.",
            "A query that sees no key yields the output projection's bias.",
        ),
    ),
)
