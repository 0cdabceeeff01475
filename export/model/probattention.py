"""ProbSparse attention of Informer: only the u queries that stand out attend; the rest get a mean or a running sum.

A query stands out by M = max - sum / S over a few sampled keys. The library returns the context as [B, H, L, D] and the
layer around it reads that with `.view(B, L, -1)`, so heads and time are scrambled; models are trained that way, and
`scrambled=True` (the default) reproduces it. Upstream samples keys anew at every call; here the sample is an input or
a seeded buffer, so that an exported graph and its reference look at the same keys. One more upstream habit is not
reproduced: the library squeezes *every* axis of size 1 of the sampled products, which is wrong for one head.

Source: Informer (arXiv 2012.07436); thuml/Time-Series-Library `layers/SelfAttention_Family.py`, zhouhaoyi/Informer2020
`models/attn.py` (which returns [B, L, H, D]: `scrambled=False`).
"""

import math

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from export.model.capturing import constant, decide
from export.model.informer import Mask, require_self_attention


def sample_count(factor: int, length: int) -> int:
    """Returns factor * ceil(ln(length)), at least 1 and at most `length`: how many keys are sampled of `length` keys,
    and how many queries attend of `length` queries.

    Upstream yields 0 for length 1 and then fails; 1 is what the cap makes of every other small length.
    """
    return min(max(factor * math.ceil(math.log(length)), 1), length)


def sample_keys(factor: int, queries: int, keys: int, rng: torch.Generator) -> Tensor:
    """Returns which keys each query is measured on, int64 [queries, sample_count(keys)], drawn with replacement."""
    return torch.randint(keys, (queries, sample_count(factor, keys)), generator=rng)


class ProbAttention(nn.Module):
    """ProbSparse attention.

    Args:
        mask_flag: Causal: a chosen query sees keys up to its own position, other queries get the cumulative sum of V
            (else the mean of V).
        factor: c in u = c * ceil(ln L).
        scale: Scale of the scores; None or 0 means 1 / sqrt(D).
        attention_dropout: Kept for upstream's signature; upstream makes this dropout and never applies it.
        output_attention: Return the weights, 1 / S for queries that were not chosen.
        scrambled: Return [B, H, L, D] as the library does, else [B, L, H, D].
        lengths: (L, S) for which to hold a sample as a buffer; None if the sample is an input.
        seed: Seed of that sample.
    """

    index_sample: Tensor | None

    def __init__(
        self,
        mask_flag: bool = True,
        factor: int = 5,
        scale: float | None = None,
        attention_dropout: float = 0.0,
        output_attention: bool = False,
        scrambled: bool = True,
        lengths: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.mask_flag = mask_flag
        self.scale = scale
        self.output_attention = output_attention
        self.scrambled = scrambled
        self.dropout = nn.Dropout(attention_dropout)
        sample = lengths and sample_keys(factor, *lengths, torch.Generator().manual_seed(seed))
        self.register_buffer("index_sample", sample, persistent=False)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Mask | Tensor | None = None,
        tau: Tensor | None = None,
        delta: Tensor | None = None,
        index_sample: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (context [B, H, L, Dv] or, not scrambled, [B, L, H, Dv], weights [B, H, L, S] or None).

        Args:
            queries: [B, L, H, D].
            keys: [B, S, H, D].
            values: [B, S, H, Dv].
            attn_mask: Ignored, as upstream does; `mask_flag` alone decides.
            tau: Not used here.
            delta: Not used here.
            index_sample: Sampled keys of each query, int64 [L, U] with U = sample_count(factor, S); None means the
                buffer.

        Raises:
            UsageError: There is no sample, it fits other lengths, or the causal mask is asked for with L != S.
        """
        query, key, value = queries.transpose(2, 1), keys.transpose(2, 1), values.transpose(2, 1)
        length, key_length = query.shape[2], key.shape[2]
        sample = self.index_sample if index_sample is None else index_sample
        if sample is None:
            raise UsageError(
                "ProbAttention needs its sampled keys: pass index_sample [L, U], or build it with lengths."
            )
        self._require_fit(sample, length, key_length)

        count = self._top_count(sample, length, key_length)
        index = self.measure(query, key, sample).topk(count, sorted=True).indices
        scale = self.scale or 1.0 / math.sqrt(constant(query.shape[-1]))
        chosen = torch.gather(query, 2, _across(index, query.shape[-1]))
        scores = torch.matmul(chosen, key.transpose(-2, -1)) * scale
        if self.mask_flag:
            later = torch.arange(key_length, device=index.device) > index.unsqueeze(-1)
            scores = scores.masked_fill(later, -math.inf)
        weights = torch.softmax(scores, dim=-1)
        rows = _across(index, value.shape[-1])
        context = self._default_context(value, length).scatter(2, rows, torch.matmul(weights, value))
        if not self.scrambled:
            context = context.transpose(2, 1)
        return context.contiguous(), self._all_weights(weights, index, length) if self.output_attention else None

    def measure(self, query: Tensor, key: Tensor, sample: Tensor) -> Tensor:
        """Returns how much each query stands out, M = max - sum / S over its sampled keys, [B, H, L].

        Args:
            query: [B, H, L, D].
            key: [B, H, S, D].
            sample: Sampled keys, int64 [L, U].
        """
        batch, heads, key_length, size = key.shape
        sampled = key.index_select(2, sample.flatten()).view(batch, heads, query.shape[2], -1, size)
        products = torch.matmul(query.unsqueeze(-2), sampled.transpose(-2, -1)).squeeze(-2)
        return products.amax(-1) - products.sum(-1) / key_length

    def _top_count(self, sample: Tensor, length: int, key_length: int) -> int:
        if type(length) is int:
            return sample_count(self.factor, length)
        # A symbolic length has no logarithm an exporter could write down. In self-attention u and U are the same
        # function of the same length, so the sample's width, which is a dimension of an input, says u.
        if not decide(length == key_length):
            raise UsageError(
                "ProbAttention as cross-attention exports at fixed lengths only: its number of chosen queries is a "
                "logarithm of the query length. Make the sequence axes static."
            )
        return sample.shape[1]

    def _default_context(self, value: Tensor, length: int) -> Tensor:
        if self.mask_flag:
            return value.cumsum(dim=2)
        batch, heads, _, size = value.shape
        return value.mean(dim=2, keepdim=True).expand(batch, heads, length, size)

    @staticmethod
    def _all_weights(weights: Tensor, index: Tensor, length: int) -> Tensor:
        batch, heads, _, keys = weights.shape
        uniform = weights.new_ones(batch, heads, length, keys) / keys
        return uniform.scatter(2, _across(index, keys), weights)

    def _require_fit(self, sample: Tensor, length: int, key_length: int) -> None:
        if self.mask_flag:
            require_self_attention(length, key_length)
        if type(length) is not int or type(key_length) is not int:
            return
        wanted = (length, sample_count(self.factor, key_length))
        if tuple(sample.shape) != wanted:
            raise UsageError(
                f"index_sample has shape {tuple(sample.shape)}, but {length} queries and {key_length} keys with "
                f"factor {self.factor} need {wanted}. Draw it with sample_keys, or build the layer for these lengths."
            )


def _across(index: Tensor, size: int) -> Tensor:
    """Returns positions [B, H, u] repeated along a new last axis, [B, H, u, size]."""
    return index.unsqueeze(-1).expand(*index.shape, size)
