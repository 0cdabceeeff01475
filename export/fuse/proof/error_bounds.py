"""How far two float32 spellings of one block may differ. The bounds are derived, not chosen, with u = 2^-24:

    attention   c * u * (2 + s) * A,  A = P @ |V|, s the row's largest scale * |Q| @ |K|^T, c = 10 a side
    rotation    c * u * (|x0| + |x1|) * (|cos| + |sin|),  c = 4 a side

because a dot product's rounding is relative to its absolute terms, and exp turns an error of s into a factor of s.

What is as large as the scores is made in pieces of at most `PIECE` elements, several side by side: a graph may have a
fixed length, and the scores of 16 heads and 4096 positions are 2 GiB in float64, a dozen times over.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.fuse.proof import workers
from export.fuse.proof.running import Arrays

PIECE = 1 << 18
"""Scores in float64 that one thread has in hand, in each of at most `ARRAYS` arrays; one row where that is longer."""

ARRAYS = 12

_ROUNDOFF = 2.0**-24
_ATTENTION = 20.0
_ROTATION = 8.0
_SHALLOW = 1e4
"""Masks up to this shift scores and add to their rounding error; deeper ones hide keys."""

Piece = tuple[slice, slice, slice]
"""Batches, heads and rows of queries."""


def rotation_bound(node: ir.Node, known: Arrays) -> np.ndarray:
    """Returns the error bound of a RotaryEmbedding's output, as one number for each row of channels."""
    x, cos, sin = (np.abs(known[str(v.name)].astype(np.float64)) for v in node.inputs[:3] if v is not None)
    size = 2.0 * x.max(initial=0.0) * (cos.max(initial=0.0) + sin.max(initial=0.0))
    return np.asarray(_ROTATION * _ROUNDOFF * size)


def present_bounds(node: ir.Node, known: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the error bounds of present_key and present_value: copies, but a rotation may stand in their region."""
    parts = [(_of(node, at, known), _of(node, at + 3, known)) for at in (1, 2)]
    largest = [max(float(np.abs(x).max(initial=0.0)) for x in pair if x is not None) for pair in parts]
    key, value = (np.asarray(_ROTATION * _ROUNDOFF * 2.0 * size) for size in largest)
    return key, value


def attention_bounds(node: ir.Node, known: Arrays, *, inside: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float32 error bounds of an Attention's output [B, H, S, Dv] and of the [B, H, S, T] inside it.

    Args:
        node: The Attention; its scale, softcap, past and is_causal, and which of its inside it gives, are read.
        known: The arrays by name: Q [B, H, S, D], K [B, Hkv, T, D], V [B, Hkv, T, Dv], and the mask, boolean
            (True = attend) or additive, broadcastable to [B, H, S, T].
        inside: Whether the second is wanted; else it is empty.
    """
    q, k, v = (known[str(x.name)] for x in node.inputs[:3] if x is not None)
    mask, past = _of(node, 3, known), (_of(node, 4, known), _of(node, 5, known))
    if past[0] is not None and past[1] is not None:
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
    shape = (*q.shape[:3], k.shape[2])
    bounds = _Bounds(
        q=q,
        k=k,
        v=v,
        mask=None if mask is None else np.broadcast_to(mask, shape),
        scale=node.attributes["scale"].as_float() if "scale" in node.attributes else q.shape[-1] ** -0.5,
        cap=node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0,
        first=_first(node, past[0]),
        weights=_integer(node, "qk_matmul_output_mode") == 3,
        outside=np.empty((*q.shape[:3], v.shape[3])),
        inside=np.empty(shape) if inside else None,
    )
    workers.side_by_side(bounds.write, _pieces(shape))
    return bounds.outside, np.empty(0) if bounds.inside is None else bounds.inside


@dataclass(frozen=True)
class _Bounds:
    """What the bounds of one attention are computed from, and where they are written, piece by piece.

    Attributes:
        first: The last key that the first query sees, where the op is causal.
        weights: Whether it is the weights that the op gives of its inside, and not scores.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray | None
    scale: float
    cap: float
    first: int | None
    weights: bool
    outside: np.ndarray
    inside: np.ndarray | None

    def write(self, piece: Piece) -> None:
        batches, heads, rows = piece
        shared = np.arange(self.q.shape[1])[heads] // (self.q.shape[1] // self.k.shape[1])
        q = self.q[piece].astype(np.float64)
        k, v = (x[batches][:, shared].astype(np.float64) for x in (self.k, self.v))
        scores = self.scale * (q @ k.swapaxes(-1, -2))
        size = abs(self.scale) * (np.abs(q) @ np.abs(k).swapaxes(-1, -2))
        if self.cap:
            scores = self.cap * np.tanh(scores / self.cap)
        if self.mask is not None:
            mask = self.mask[piece]
            if mask.dtype == bool:
                scores = np.where(mask, scores, -np.inf)
            else:  # in float32, as both sides add it: a deep mask absorbs the scores
                scores = (scores.astype(np.float32) + mask.astype(np.float32)).astype(np.float64)
                size = size + np.where(np.abs(mask) <= _SHALLOW, np.abs(mask), 0.0)
        if self.first is not None:
            queries, keys = scores.shape[-2:]
            scores = np.where(np.tri(queries, keys, self.first + (rows.start or 0), dtype=bool), scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
        total = weights.sum(axis=-1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        factor = _ATTENTION * _ROUNDOFF * (2.0 + size.max(axis=-1, keepdims=True))
        self.outside[piece] = factor * (weights @ np.abs(v)) + _ROUNDOFF * np.abs(v).max(axis=-2, keepdims=True)
        if self.inside is not None:  # a score is a dot product: its rounding is relative to its absolute terms
            scored = _ATTENTION * _ROUNDOFF * (1.0 + size)
            self.inside[piece] = factor * weights + _ROUNDOFF if self.weights else scored


def _pieces(shape: tuple[int, ...]) -> list[Piece]:
    """Returns the pieces of scores [B, H, S, T]: all of them where they are few, else some rows of one head each."""
    batch, heads, queries, keys = shape
    if batch * heads * queries * keys <= PIECE:
        return [(slice(None), slice(None), slice(None))]
    step = max(1, PIECE // keys)
    rows = [slice(at, at + step) for at in range(0, queries, step)]
    return [(slice(b, b + 1), slice(h, h + 1), some) for b in range(batch) for h in range(heads) for some in rows]


def _of(node: ir.Node, at: int, known: Arrays) -> np.ndarray | None:
    value = node.inputs[at] if at < len(node.inputs) else None
    return None if value is None else known[str(value.name)]


def _first(node: ir.Node, past: np.ndarray | None) -> int | None:
    return None if not _integer(node, "is_causal") else 0 if past is None else past.shape[2]


def _integer(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0
