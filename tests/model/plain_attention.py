"""Attention written down a second time, in float64 numpy and loops, so that no form is its own judge."""

import math

import numpy as np
import torch

Array = np.ndarray


def f64(x: torch.Tensor) -> Array:
    return x.detach().to(torch.float64).numpy() if x.is_floating_point() else x.numpy()


def linear(layer: torch.nn.Linear, x: Array) -> Array:
    out = np.einsum("...i,oi->...o", x, f64(layer.weight))
    return out if layer.bias is None else out + f64(layer.bias)


def split_heads(x: Array, heads: int) -> Array:
    """[B, N, H*D] -> [B, H, N, D], one slice a head."""
    size = x.shape[-1] // heads
    return np.stack([x[:, :, h * size : (h + 1) * size] for h in range(heads)], axis=1)


def merge_heads(x: Array) -> Array:
    return np.concatenate([x[:, h] for h in range(x.shape[1])], axis=-1)


def attend(query: Array, key: Array, value: Array, keep: Array | None = None, *, empty: float = math.nan) -> Array:
    """Softmax attention, one query at a time over the keys it keeps; a query without keys gives `empty`.

    keep broadcasts to [B, H, L, S].
    """
    batch, heads, length, size = query.shape
    keys = key.shape[2]
    keep = np.broadcast_to(np.ones((), bool) if keep is None else keep, (batch, heads, length, keys))
    out = np.full((batch, heads, length, value.shape[-1]), empty)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = [j for j in range(keys) if keep[b, h, i, j]]
                if not seen:
                    continue
                scores = [float(query[b, h, i] @ key[b, h, j]) / math.sqrt(size) for j in seen]
                top = max(scores)
                weights = [math.exp(s - top) for s in scores]
                out[b, h, i] = sum(w * value[b, h, j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    return out


def turned(vector: Array, angles: list[float], layout: str) -> Array:
    """One vector with each pair of channels turned by its angle: a 2x2 rotation at a time."""
    out = vector.copy()
    half = len(angles)
    for i, angle in enumerate(angles):
        a, b = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + half)
        out[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        out[b] = vector[a] * math.sin(angle) + vector[b] * math.cos(angle)
    return out


def angles_at(position: int, rotary_dim: int, theta: float = 10000.0) -> list[float]:
    return [position * theta ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)]


def rotated(x: Array, layout: str, rotary_dim: int | None = None) -> Array:
    """x [..., N, D] with every position's vector turned, its first `rotary_dim` channels only."""
    width = x.shape[-1] if rotary_dim is None else rotary_dim
    out = x.copy()
    for index in np.ndindex(x.shape[:-1]):
        out[index][:width] = turned(x[index][:width], angles_at(index[-1], width), layout)
    return out
