"""ONNX Attention in float64, written from the operator's text alone: what every lowering must still compute."""

import numpy as np


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    past_key: np.ndarray | None = None,
    past_value: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    *,
    scale: float | None = None,
    is_causal: int = 0,
    softcap: float = 0.0,
    qk_matmul_output_mode: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    softmax_precision: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns Y, present key, present value and the scores that the mode asks for."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    three_axes = q.ndim == 3
    if three_axes:
        q, k, v = (_split(x, n) for x, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads)))
    offset = np.zeros((1, 1, 1, 1), np.int64)
    if past_key is not None and past_value is not None:
        offset = offset + past_key.shape[2]
        k = np.concatenate([past_key.astype(np.float64), k], 2)
        v = np.concatenate([past_value.astype(np.float64), v], 2)
    present = k, v
    rows, keys = q.shape[2], k.shape[2]
    if lengths is not None:
        offset = lengths.reshape(-1, 1, 1, 1) - rows
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))

    place, key = np.arange(rows).reshape(1, 1, rows, 1) + offset, np.arange(keys).reshape(1, 1, 1, keys)
    keep = np.ones((1, 1, rows, keys), bool)
    if is_causal:
        keep = keep & (key <= place)
    if left_window_size >= 0:
        keep = keep & (key >= place - left_window_size)
    if right_window_size >= 0:
        keep = keep & (key <= place + right_window_size)
    if lengths is not None:
        keep = keep & (key < lengths.reshape(-1, 1, 1, 1))
    bias = np.zeros((1, 1, 1, 1))
    if mask is not None:
        missing = keys - mask.shape[-1]
        if mask.dtype == bool:
            mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)])
            keep = keep & mask
        else:
            bias = np.pad(mask.astype(np.float64), [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=-np.inf)
    bias = np.where(keep, bias, -np.inf)

    scores = q @ np.swapaxes(k, 2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    shown = scores
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    shown = shown if qk_matmul_output_mode == 0 else scores
    scores = scores + bias
    shown = scores if qk_matmul_output_mode == 2 else shown
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    shown = weights if qk_matmul_output_mode == 3 else shown
    y = weights @ v
    if three_axes:
        y = np.swapaxes(y, 1, 2).reshape(y.shape[0], rows, -1)
    return y, *present, shown


def _split(x: np.ndarray, heads: int) -> np.ndarray:
    return np.swapaxes(x.reshape(x.shape[0], x.shape[1], heads, -1), 1, 2)
