"""The ESPnet and Conformer forms: how the encoder calls its attention, and how each call's inputs are drawn."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from export.model import masks
from export.model.conformer import MultiHeadedAttention, RelPositionMultiHeadedAttention
from export.model.draw import generator, keep_mask, normal, seeded
from export.model.form import Case, Form


class CrossAttention(MultiHeadedAttention):
    """The decoder's call: queries on separate keys and values, under their padding mask."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Returns (output [B, L, E], new cache [B, H, S, 2 D])."""
        return super().forward(query, key, value, mask)


class StreamingSelfAttention(MultiHeadedAttention):
    """The streaming encoder's call: one sequence, a mask over cached and new keys, and the cache."""

    def forward(self, x: Tensor, mask: Tensor, cache: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Returns (output [B, L, E], new cache [B, H, C + L, 2 D]) for x [B, L, E]."""
        return super().forward(x, x, x, mask, None, cache)


class RelPositionSelfAttention(RelPositionMultiHeadedAttention):
    """The conformer encoder's call: one sequence, its mask and its position embedding."""

    def forward(self, x: Tensor, mask: Tensor, pos_emb: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Returns (output [B, L, E], new cache [B, H, L, 2 D]) for x [B, L, E]."""
        return super().forward(x, x, x, mask, pos_emb)


class ChunkedSelfAttention(MultiHeadedAttention):
    """The encoder's call with a static chunk: the mask is built from the padding, in the graph.

    Args:
        n_head: As for `MultiHeadedAttention`.
        n_feat: As there.
        chunk_size: Positions in a chunk; a query sees its own chunk to the end and everything before it.
        num_left_chunks: How many chunks before its own a query sees; -1 means all. Upstream's function takes this
            number and ignores it: weights trained there with a number of 0 or more expect -1 here.
    """

    def __init__(self, n_head: int, n_feat: int, chunk_size: int, num_left_chunks: int = -1) -> None:
        super().__init__(n_head, n_feat)
        self.chunk_size = chunk_size
        self.num_left_chunks = num_left_chunks

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Returns (output [B, L, E], new cache [B, H, L, 2 D]) for x [B, L, E] and key padding mask [B, 1, L]."""
        return super().forward(x, x, x, masks.add_optional_chunk_mask(mask, self.chunk_size, self.num_left_chunks))


WIDTH, HEADS = 32, 2
DIMS = {"batch": (1, 2, 4), "length": (1, 32, 64)}


def _draw_mha(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length, memory = case.dims["batch"], case.dims["length"], case.dims["memory"]
    return {
        "query": normal(case, rng, batch, length, WIDTH),
        "key": normal(case, rng, batch, memory, WIDTH),
        "value": normal(case, rng, batch, memory, WIDTH),
        "mask": keep_mask(case.padding, batch, memory, rng).unsqueeze(1),
    }


def _draw_self(case: Case) -> dict[str, Tensor]:
    return _self(case, generator(case))


def _self(case: Case, rng: torch.Generator) -> dict[str, Tensor]:
    batch, length = case.dims["batch"], case.dims["length"]
    return {
        "x": normal(case, rng, batch, length, WIDTH),
        "mask": keep_mask(case.padding, batch, length, rng).unsqueeze(1),
    }


def _draw_streaming(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length, past = case.dims["batch"], case.dims["length"], case.dims["past"]
    return {
        "x": normal(case, rng, batch, length, WIDTH),
        "mask": keep_mask(case.padding, batch, past + length, rng).unsqueeze(1),
        "cache": normal(case, rng, batch, HEADS, past, 2 * WIDTH // HEADS),
    }


def _draw_relative(rows_of: Callable[[int], int]) -> Callable[[Case], dict[str, Tensor]]:
    def draw(case: Case) -> dict[str, Tensor]:
        rng = generator(case)
        return {**_self(case, rng), "pos_emb": normal(case, rng, 1, rows_of(case.dims["length"]), WIDTH)}

    return draw


def _form(name: str, summary: str, **changes: Any) -> Form:
    common = Form(
        name=name,
        summary=summary,
        source="CosyVoice cosyvoice/transformer/attention.py (ESPnet, WeNet)",
        make=lambda: seeded(lambda: CrossAttention(HEADS, WIDTH)),
        draw=_draw_self,
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 2: "length"}},
        dims=DIMS,
        padding=("right", "left", "full-row"),
        notes=("A query that sees no key yields the output projection's bias: weights are zeroed after the softmax.",),
    )
    return replace(common, **changes)


FORMS = (
    _form(
        "espnet-mha",
        "ESPnet multi-head attention, queries and keys of different lengths, weights re-masked to zero",
        draw=_draw_mha,
        dynamic={
            "query": {0: "batch", 1: "length"},
            "key": {0: "batch", 1: "memory"},
            "value": {0: "batch", 1: "memory"},
            "mask": {0: "batch", 2: "memory"},
        },
        dims={**DIMS, "memory": (1, 24, 64)},
    ),
    _form(
        "espnet-mha-cache",
        "as espnet-mha, one streaming step: keys and values are appended to a cache, which is returned",
        make=lambda: seeded(lambda: StreamingSelfAttention(HEADS, WIDTH)),
        draw=_draw_streaming,
        # total = past + length at every point of the profile, as in every case.
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 2: "total"}, "cache": {0: "batch", 2: "past"}},
        dims={**DIMS, "past": (1, 32, 64), "total": (2, 64, 128)},
    ),
    _form(
        "espnet-relpos",
        "Conformer relative positions: the bias is a product with 2L-1 position embeddings, shifted by row",
        make=lambda: seeded(lambda: RelPositionSelfAttention(HEADS, WIDTH)),
        draw=_draw_relative(lambda length: 2 * length - 1),
        dynamic={
            "x": {0: "batch", 1: "length"},
            "mask": {0: "batch", 2: "length"},
            "pos_emb": {1: "positions"},
        },
        # positions = 2 * length - 1 at every point of the profile, as in every case.
        dims={**DIMS, "positions": (1, 63, 127)},
    ),
    _form(
        "espnet-relpos-absolute",
        "as espnet-relpos, one position embedding a key: upstream then leaves the shift out",
        make=lambda: seeded(lambda: RelPositionSelfAttention(HEADS, WIDTH)),
        draw=_draw_relative(lambda length: length),
        dynamic={"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 2: "length"}, "pos_emb": {1: "length"}},
    ),
    _form(
        "espnet-chunk-mask",
        "streaming encoder attention: a query sees its own chunk of 4 and one chunk before it, built in the graph",
        source="CosyVoice cosyvoice/utils/mask.py (add_optional_chunk_mask)",
        make=lambda: seeded(lambda: ChunkedSelfAttention(HEADS, WIDTH, chunk_size=4, num_left_chunks=1)),
        notes=(
            "A query that would see no key sees every key.",
            "Upstream's function ignores the number of left chunks; here -1 says so and other numbers count.",
        ),
    ),
)
