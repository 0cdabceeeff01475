"""ESPnet and Conformer attention, as CosyVoice and WeNet train it: cache, relative positions, zeroed masked weights.

Parameter names are upstream's (`linear_q`, `linear_k`, `linear_v`, `linear_out`; `linear_pos`, `pos_bias_u`,
`pos_bias_v`), so its weights load with `strict=True`. Three habits of upstream are part of the trained model and kept:
the new cache is returned whether or not a cache was given; masked weights are set to 0 again after the softmax, so a
query that sees no key yields the output projection's bias and not NaN; a mask wider than the keys is cut to them.

Source: CosyVoice `cosyvoice/transformer/attention.py`; relative positions from Transformer-XL (arXiv 1901.02860, 3.3).
"""

import math

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from export.model.capturing import decide
from export.model.checks import head_size


class MultiHeadedAttention(nn.Module):
    """Scaled dot-product attention with an optional key/value cache.

    Args:
        n_head: Number of heads H.
        n_feat: Model width E.
        dropout_rate: Dropout on the weights while training.
        key_bias: Whether `linear_k` has a bias.

    Raises:
        UsageError: `n_feat` is not divisible by `n_head`.
    """

    def __init__(self, n_head: int, n_feat: int, dropout_rate: float = 0.0, key_bias: bool = True) -> None:
        super().__init__()
        self.d_k = head_size(n_feat, n_head)
        self.h = n_head
        self.linear_q = nn.Linear(n_feat, n_feat)
        self.linear_k = nn.Linear(n_feat, n_feat, bias=key_bias)
        self.linear_v = nn.Linear(n_feat, n_feat)
        self.linear_out = nn.Linear(n_feat, n_feat)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        pos_emb: Tensor | None = None,
        cache: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, ...]:
        """Returns (output, new cache), or (output, new cache, weights) when the weights are asked for.

        Args:
            query: [B, L, E].
            key: [B, T, E].
            value: [B, T, E].
            mask: True = keep, [B, 1, S] or [B, L, S] with S the cached and the new keys together; wider is cut.
                None or upstream's empty (0, 0, 0) tensor means no mask.
            pos_emb: Not used here; `RelPositionMultiHeadedAttention` needs it.
            cache: Earlier keys and values side by side, [B, H, C, 2 D]; C may be 0. None or upstream's empty
                (0, 0, 0, 0) tensor means none.
            need_weights: Also return the softmax weights, [B, H, L, S].

        Returns:
            Output [B, L, E] and the cache to hand to the next call, [B, H, S, 2 D].
        """
        q, k, v = self._split(self.linear_q(query)), self._split(self.linear_k(key)), self._split(self.linear_v(value))
        k, v = self._extend(k, v, cache)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.d_k)
        return self._finish(scores, k, v, mask, need_weights)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.h, self.d_k).transpose(1, 2)

    def _extend(self, k: Tensor, v: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        cache = _unless_placeholder(cache, 0)
        if cache is None:
            return k, v
        past_k, past_v = torch.split(cache, self.d_k, dim=-1)
        return torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)

    def _finish(
        self, scores: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, ...]:
        mask = _unless_placeholder(mask, 2)
        if mask is None:
            weights = torch.softmax(scores, dim=-1)
        else:
            hidden = mask.unsqueeze(1).eq(0)[..., : scores.shape[-1]]
            weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1).masked_fill(hidden, 0.0)
        context = torch.matmul(self.dropout(weights), v).transpose(1, 2)
        output = self.linear_out(context.reshape(context.shape[0], -1, self.h * self.d_k))
        new_cache = torch.cat((k, v), dim=-1)
        return (output, new_cache, weights) if need_weights else (output, new_cache)


class RelPositionMultiHeadedAttention(MultiHeadedAttention):
    """Attention whose scores add a term for the relative position of query and key.

    scores = ((q + u) k^T + rel_shift((q + v) p^T)) / sqrt(D), p = linear_pos(pos_emb). `rel_shift` is left out where
    p already has one row a key, as upstream does. Arguments as for `MultiHeadedAttention`.
    """

    def __init__(self, n_head: int, n_feat: int, dropout_rate: float = 0.0, key_bias: bool = True) -> None:
        super().__init__(n_head, n_feat, dropout_rate, key_bias)
        self.linear_pos = nn.Linear(n_feat, n_feat, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.h, self.d_k))
        self.pos_bias_v = nn.Parameter(torch.empty(self.h, self.d_k))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        pos_emb: Tensor | None = None,
        cache: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, ...]:
        """Returns what `MultiHeadedAttention.forward` does.

        Args:
            query: As there, and so are `key`, `value`, `mask`, `cache` and `need_weights`.
            key: As there.
            value: As there.
            mask: As there.
            pos_emb: Position embedding [1 or B, P, E] with P = 2 S - 1 (relative, ESPnet's) or P = S (no shift).
            cache: As there.
            need_weights: As there.

        Raises:
            UsageError: `pos_emb` is missing or P fits neither layout.
        """
        if pos_emb is None:
            raise UsageError("Relative-position attention needs pos_emb, [1 or B, P, E]; none was passed.")
        q, k, v = self._split(self.linear_q(query)), self._split(self.linear_k(key)), self._split(self.linear_v(value))
        k, v = self._extend(k, v, cache)
        p = self._split(self.linear_pos(pos_emb))
        per_head_u, per_head_v = self.pos_bias_u.unsqueeze(1), self.pos_bias_v.unsqueeze(1)
        content = torch.matmul(q + per_head_u, k.transpose(-2, -1))
        position = torch.matmul(q + per_head_v, p.transpose(-2, -1))
        width, keys = position.shape[-1], content.shape[-1]
        if decide(width != keys):
            _require_relative(width, keys)
            position = rel_shift(position)
        return self._finish((content + position) / math.sqrt(self.d_k), k, v, mask, need_weights)


def rel_shift(x: Tensor) -> Tensor:
    """Returns scores by relative position as scores by key: out[i, j] = x[i, L - 1 - i + j].

    Args:
        x: [B, H, L, P]; column L - 1 - i + j holds the offset between query i and key j.

    Returns:
        [B, H, L, P // 2 + 1]. Spelled as upstream: one zero column in front, then the rows re-read one longer.
    """
    batch, heads, length, width = x.shape
    padded = torch.cat((x.new_zeros(batch, heads, length, 1), x), dim=-1).reshape(batch, heads, width + 1, length)
    return padded[:, :, 1:].reshape(batch, heads, length, width)[..., : width // 2 + 1]


def _unless_placeholder(x: Tensor | None, axis: int) -> Tensor | None:
    """Returns x, or None for upstream's stand-in for "none": a tensor whose `axis` is empty."""
    return None if x is None or decide(x.shape[axis] == 0) else x


def _require_relative(width: int, keys: int) -> None:
    if type(width) is int and type(keys) is int and width // 2 + 1 != keys:
        raise UsageError(
            f"pos_emb has {width} rows for {keys} keys. "
            f"Pass {2 * keys - 1} rows (relative positions) or {keys} (no shift)."
        )
