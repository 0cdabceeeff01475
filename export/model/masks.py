"""Attention masks as pure functions of sizes and lengths, spelled so that both exporters keep them dynamic.

Every mask is bool with True = keep, except `make_pad_mask`, which keeps its upstream's True = padded. Sizes may be
ints or the symbolic sizes an exporter hands out; nothing here reads a tensor's value, branches on one, or calls
`torch.where` on bool operands (ONNX Runtime's CPU provider has no such kernel). Each mask is one comparison of
positions, so a graph reader can prove what it means.
"""

from typing import Literal

import torch
from torch import Tensor

Alignment = Literal["upper-left", "lower-right"]
Device = torch.device | str | None


def make_pad_mask(lengths: Tensor, max_len: int) -> Tensor:
    """Returns which positions are padding, bool [B, max_len] with **True = padded** (ESPnet's convention).

    Args:
        lengths: Valid positions of each row, integer [B].
        max_len: Width of the mask, usually `x.shape[1]`. Upstream may leave it out and read `lengths.max().item()`,
            which makes the width depend on data and does not export; here the caller says it.
    """
    return torch.arange(max_len, device=lengths.device) >= lengths.unsqueeze(-1)


def keep_from_lengths(lengths: Tensor, max_len: int) -> Tensor:
    """Returns which positions are valid, bool [B, max_len]; the complement of `make_pad_mask`."""
    return torch.arange(max_len, device=lengths.device) < lengths.unsqueeze(-1)


def key_padding(keep: Tensor) -> Tensor:
    """Returns a key-padding mask [B, S] as [B, 1, 1, S], ready to broadcast over heads and queries."""
    return keep.unsqueeze(1).unsqueeze(1)


def subsequent_mask(size: int, device: Device = None) -> Tensor:
    """Returns the lower triangle, bool [size, size]: query i keeps keys 0..i."""
    positions = torch.arange(size, device=device)
    return positions <= positions.unsqueeze(-1)


def causal_mask(
    query_length: int, key_length: int, alignment: Alignment = "upper-left", device: Device = None
) -> Tensor:
    """Returns the causal mask, bool [L, S].

    Args:
        query_length: L.
        key_length: S.
        alignment: "upper-left" keeps j <= i (what `is_causal=True` means in torch and in ONNX Attention without a
            past); "lower-right" keeps j <= i + S - L (what decoding with a cache needs). Equal where L == S.
        device: Where to build it.
    """
    queries = torch.arange(query_length, device=device).unsqueeze(-1)
    if alignment == "lower-right":
        queries = queries + (key_length - query_length)
    return torch.arange(key_length, device=device) <= queries


def sliding_window_mask(size: int, window: int, device: Device = None) -> Tensor:
    """Returns the causal sliding window, bool [size, size]: query i keeps the `window` keys i-window+1..i."""
    positions = torch.arange(size, device=device)
    back = positions.unsqueeze(-1) - positions
    return (back >= 0) & (back < window)


def subsequent_chunk_mask(size: int, chunk_size: int, num_left_chunks: int = -1, device: Device = None) -> Tensor:
    """Returns the streaming chunk mask, bool [size, size] (WeNet, CosyVoice `utils/mask.py`).

    Query i sees its own chunk to the end, all chunks before it when `num_left_chunks` < 0, else only that many:
    j < (i // c + 1) * c and j >= (i // c - left) * c, spelled as a comparison of the positions where the two chunks
    start, i - i % c (one Mod in both exporters; integer division becomes a page of sign handling in one and a float
    division in the other). One published copy of this function ignores `num_left_chunks`.
    """
    positions = torch.arange(size, device=device)
    starts = positions - torch.remainder(positions, chunk_size)
    behind = starts.unsqueeze(-1) - starts
    keep = behind >= 0
    if num_left_chunks >= 0:
        keep = keep & (behind <= num_left_chunks * chunk_size)
    return keep


def open_empty_rows(keep: Tensor) -> Tensor:
    """Returns `keep` with every row (last axis) that keeps nothing opened to keep everything.

    This is what CosyVoice's `add_optional_chunk_mask` does with a masked assignment behind an `.item()`, which does
    not export; the two agree on every input.
    """
    return keep | ~keep.any(-1, keepdim=True)


def add_optional_chunk_mask(keep: Tensor, chunk_size: int, num_left_chunks: int = -1) -> Tensor:
    """Returns padding combined with the static chunk mask, rows that keep nothing opened.

    Args:
        keep: Key padding, bool [B, 1, S] with True = keep.
        chunk_size: Static chunk size; 0 or less means full context (no chunk mask).
        num_left_chunks: As in `subsequent_chunk_mask`.

    Returns:
        bool [B, S, S], or [B, 1, S] for full context.
    """
    if chunk_size > 0:
        keep = keep & subsequent_chunk_mask(keep.shape[-1], chunk_size, num_left_chunks, keep.device)
    return open_empty_rows(keep)


def mask_to_bias(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an additive mask in `dtype`: 0 where keep, else a large negative *finite* number.

    CosyVoice writes (1 - m) * -1e10. In float16 an exporter folds that constant to -inf, and 0 * -inf is NaN on
    every kept key; so this selects instead of multiplying. The fill is -1e10 where the dtype holds it, and -2**15 in
    float16: half its range, so that adding a score cannot overflow to -inf and a row without any key stays finite.
    """
    fill = -(2.0**15) if dtype == torch.float16 else -1.0e10
    return torch.zeros_like(keep, dtype=dtype).masked_fill(~keep, fill)
