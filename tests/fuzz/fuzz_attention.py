"""ai.onnx::Attention and RotaryEmbedding in numpy, written from their specification (opsets 23 to 25)."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from fuzz_tensor import FLOATS, Tensor, bounds, product, softmax


def _split(tensor: Tensor, heads: int | None) -> Tensor:
    """[B, S, H*D] -> [B, H, S, D]."""
    if heads is None:
        return tensor
    return tensor.moved(lambda x: x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3))


def _joined(past: Tensor, new: Tensor) -> Tensor:
    e = np.concatenate([bounds(past.e, past.x), bounds(new.e, new.x)], 2)
    return replace(new, x=np.concatenate([past.x, new.x], 2), e=e)


def attention(node, q, k, v, mask=None, past_k=None, past_v=None, lengths=None):
    """Returns Y, present_key, present_value, qk_matmul_output. What is inside the op counts as wide: only Q, K, V and
    the results are rounded to the element type."""
    a = node.attributes
    flat = q.x.ndim == 3
    q = _split(q, a.get("q_num_heads") if flat else None)
    k, v = (_split(t, a.get("kv_num_heads") if flat else None) for t in (k, v))
    past = 0
    if past_k is not None:
        past = past_k.x.shape[2]
        k, v = _joined(past_k, k), _joined(past_v, v)
    groups, rest = divmod(q.x.shape[1], k.x.shape[1])
    assert not rest and k.x.shape[1] == v.x.shape[1] and k.x.shape[0] == v.x.shape[0] == q.x.shape[0]
    wide_k, wide_v = (t.moved(lambda x: np.repeat(x, groups, axis=1)) for t in (k, v))
    unit = node.rounding.unit(q.kind)
    scale = a.get("scale", q.x.shape[-1] ** -0.5)
    x, e = product(q, wide_k.moved(lambda y: y.swapaxes(-1, -2)), np.matmul, unit)
    x, e = scale * x, abs(scale) * e + 3.0 * node.rounding.scaled(np.abs(scale * x), q.kind)
    e = e + 4.0 * unit * np.abs(x)  # the scale may go on Q and K first
    shown = [(x, e)]
    cap = a.get("softcap", 0.0)
    if cap:
        x = cap * np.tanh(x / cap)
        e = e + 4.0 * unit * np.abs(x) + node.rounding.scaled(np.abs(x), q.kind)
    shown.append((x, e))
    hidden, added, added_e = _mask(a, q.x.shape, k.x.shape[2], mask, past, lengths)
    x = np.where(hidden, -np.inf, x + added)
    if node.rounding.faithful:  # every kernel adds the mask in float32 at least
        x = x.astype(np.float32).astype(np.float64)
    deep = node.rounding.result(added, ir.DataType.FLOAT, 0.0).e
    e = e + added_e + deep
    e = np.where(np.isfinite(x), e, 0.0)
    shown.append((x, e))
    p, off = softmax(x, e, unit, -np.inf)
    weights = node.rounding.result(p, q.kind, off)
    y, ye = product(Tensor(p, q.kind, off + unit * p), wide_v, np.matmul, unit)
    y = node.rounding.result(y, v.kind, ye)
    if flat:
        y = y.moved(lambda t: t.transpose(0, 2, 1, 3).reshape(t.shape[0], t.shape[2], -1))
    mode = a.get("qk_matmul_output_mode", 0)
    wanted = weights if mode == 3 else node.rounding.result(shown[mode][0], q.kind, shown[mode][1])
    return y, k, v, wanted


def _mask(a, query_shape, keys, mask, past, lengths):
    """Returns which keys are hidden, what is added to the scores, and the bound of that."""
    batch, _, rows, _ = query_shape
    hidden = np.zeros((1, 1, 1, keys), bool)
    added, added_e = np.zeros((1, 1, 1, keys)), np.zeros((1, 1, 1, keys))
    if mask is not None:
        short = keys - mask.x.shape[-1]
        assert short >= 0
        pad = [(0, 0)] * (mask.x.ndim - 1) + [(0, short)]
        if mask.kind not in FLOATS:
            hidden = ~np.pad(mask.x.astype(bool), pad)
        else:
            added = np.pad(mask.x, pad, constant_values=-np.inf)
            added_e = np.pad(bounds(mask.e, mask.x), pad)
    first = np.full(batch, past) if past or lengths is None else lengths.x.reshape(-1) - rows
    at = first.reshape(-1, 1, 1, 1) + np.arange(rows).reshape(-1, 1) - np.arange(keys)  # how far back a key is
    if a.get("is_causal", 0):
        hidden = hidden | (at < 0)
    if a.get("left_window_size", -1) >= 0:
        hidden = hidden | (at > a["left_window_size"])
    if a.get("right_window_size", -1) >= 0:
        hidden = hidden | (-at > a["right_window_size"])
    if lengths is not None:
        hidden = hidden | (np.arange(keys) >= lengths.x.reshape(-1, 1, 1, 1))
    return hidden, added, added_e


def rotary_embedding(node, x, cos, sin, positions=None):
    """Rotates the first lanes of x [B, H, S, D] or [B, S, H*D] by tables [B, S, R/2], or [P, R/2] with positions."""
    a = node.attributes
    shape = x.x.shape
    flat = x.x.ndim == 3
    x = _split(x, a.get("num_heads") if flat else None)
    if positions is not None:
        cos, sin = (t.moved(lambda y: y[positions.x]) for t in (cos, sin))
    assert cos.x.shape[:2] == (x.x.shape[0], x.x.shape[2]), (cos.x.shape, x.x.shape)
    width = a.get("rotary_embedding_dim", 0) or x.x.shape[-1]
    half = width // 2
    assert cos.x.shape[-1] == sin.x.shape[-1] == half
    if a.get("interleaved", 0):
        lanes = np.stack([np.arange(0, width, 2), np.arange(1, width, 2)])
    else:
        lanes = np.arange(width).reshape(2, half)
    values, errors = x.x.copy(), np.array(bounds(x.e, x.x))
    c, s = (t.x[:, None] for t in (cos, sin))
    ce, se = (bounds(t.e, t.x)[:, None] for t in (cos, sin))
    one, two = x.x[..., lanes[0]], x.x[..., lanes[1]]
    one_e, two_e = errors[..., lanes[0]], errors[..., lanes[1]]
    values[..., lanes[0]] = one * c - two * s
    values[..., lanes[1]] = two * c + one * s
    errors[..., lanes[0]] = np.abs(c) * one_e + np.abs(one) * ce + np.abs(s) * two_e + np.abs(two) * se
    errors[..., lanes[1]] = np.abs(c) * two_e + np.abs(two) * ce + np.abs(s) * one_e + np.abs(one) * se
    unit = node.rounding.unit(x.kind)
    for at in (0, 1):
        errors[..., lanes[at]] += 4.0 * unit * (np.abs(one) + np.abs(two))
    made = node.rounding.result(values, x.kind, errors)
    return made.moved(lambda t: t.transpose(0, 2, 1, 3).reshape(shape)) if flat else made
