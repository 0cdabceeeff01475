"""Rotary position embedding: tables in float32, rotation in at least float32, result in the input's dtype.

Tables never follow the module into half precision: at position 512 an angle rounded to float16 puts the cosine off by
0.2 (bfloat16: 1.56), and a reference in the same dtype would share and hide the error. `Float32Buffers` keeps them.

Layouts (D channels, D/2 angles t_i): *interleaved* rotates adjacent pairs (x0, x1), tables [t0, t0, t1, t1, ...];
*half* rotates (x_i, x_{i + D/2}), tables [t0, t1, ..., t0, t1, ...]. Source: RoFormer (arXiv 2104.09864), GPT-J and
GPT-NeoX for the two layouts, xPos (arXiv 2212.10554).
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from export.model.checks import require_even
from export.model.dtypes import upcast


class Float32Buffers(nn.Module):
    """A module whose buffers named in `float32_buffers` stay float32 under `.half()`, `.to(dtype)`, `.double()`.

    They still move between devices. The float64 reference keeps them float32 too: it uses the same tables.
    """

    float32_buffers: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self._buffers[name] for name in self.float32_buffers if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in before.items():
            after = self._buffers[name]
            if table is not None and after is not None and after.dtype != table.dtype:
                self._buffers[name] = table.to(after.device)
        return self


def inverse_frequencies(rotary_dim: int, theta: float = 10000.0) -> Tensor:
    """Returns theta ** (-2i / rotary_dim), float32 [rotary_dim / 2].

    Raises:
        UsageError: `rotary_dim` is odd.
    """
    require_even(rotary_dim)
    return 1.0 / (theta ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim))


def angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Returns position times inverse frequency, float32 [..., N, D/2], for integer or float positions [..., N]."""
    return positions.to(inv_freq.dtype).unsqueeze(-1) * inv_freq


def cos_sin_tables(length: int, rotary_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Returns (cos, sin), each float32 [length, rotary_dim / 2], one column an angle (not yet duplicated)."""
    table = angles(torch.arange(length), inverse_frequencies(rotary_dim, theta))
    return table.cos(), table.sin()


def duplicate_interleaved(table: Tensor) -> Tensor:
    """Returns [t0, t0, t1, t1, ...], [..., D], from [..., D/2]."""
    return torch.stack((table, table), dim=-1).flatten(-2)


def duplicate_half(table: Tensor) -> Tensor:
    """Returns [t0, t1, ..., t0, t1, ...], [..., D], from [..., D/2]."""
    return torch.cat((table, table), dim=-1)


def rotate_pairs(x: Tensor) -> Tensor:
    """Returns x with each adjacent pair (x0, x1) made (-x1, x0); last axis even. Spelled as reshape and stack."""
    even, odd = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return torch.stack((-odd, even), dim=-1).flatten(-2)


def rotate_pairs_strided(x: Tensor) -> Tensor:
    """Returns the same as `rotate_pairs`, spelled with strided slices as timm does."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).reshape(x.shape)


def rotate_halves(x: Tensor) -> Tensor:
    """Returns x = [a | b] as [-b | a]; last axis even."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    rotate: Callable[[Tensor], Tensor],
    rotary_dim: int | None = None,
    scale: Tensor | float | None = None,
) -> Tensor:
    """Returns x rotated: x*cos*s + rotate(x)*sin*s on the rotary channels, the rest untouched, in x's dtype.

    Args:
        x: [..., N, D].
        cos: Cosines, duplicated to the rotary width R in the layout of `rotate`, broadcastable to [..., N, R].
        sin: Sines, as `cos`.
        rotate: `rotate_pairs` or `rotate_pairs_strided` (interleaved), or `rotate_halves` (half).
        rotary_dim: R, where it is less than D: *partial* rotary, channels R and above pass through. A number rather
            than a shape, so that no exporter has to compare shapes.
        scale: xPos scale, broadcastable to [..., N, R] (for keys: its reciprocal), or None.
    """
    wide = upcast(x)
    turned = wide if rotary_dim is None else wide[..., :rotary_dim]
    if scale is None:
        turned = turned * cos + rotate(turned) * sin
    else:
        turned = turned * cos * scale + rotate(turned) * sin * scale
    if rotary_dim is not None:
        turned = torch.cat((turned, wide[..., rotary_dim:]), dim=-1)
    return turned.to(x.dtype)


def apply_rotary_real(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x rotated in the interleaved layout, as a complex product spelled in real arithmetic, in x's dtype.

    (a, b) -> (a cos - b sin, a sin + b cos), with tables *not* duplicated, broadcastable to [..., N, D/2] (LLaMA).
    """
    a, b = torch.unflatten(upcast(x), -1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def xpos_base(rotary_dim: int) -> Tensor:
    """Returns the xPos base of each pair, (2i + 0.4 D) / (1.4 D), float32 [rotary_dim / 2].

    Raises:
        UsageError: `rotary_dim` is odd.
    """
    require_even(rotary_dim)
    return (torch.arange(0, rotary_dim, 2) + 0.4 * rotary_dim) / (1.4 * rotary_dim)


def xpos_scale(positions: Tensor, middle: int, base: Tensor, scale_base: float = 512.0) -> Tensor:
    """Returns the xPos scale base ** ((t - middle) / scale_base), float32 [..., N, D], interleaved.

    Queries are multiplied by it and keys by its reciprocal, so that a score carries base ** ((i - j) / scale_base).

    Args:
        positions: Integer positions [..., N].
        middle: Position whose scale is 1; half the length, rounded down.
        base: From `xpos_base`, [D / 2].
        scale_base: Distance in positions over which the base applies once.
    """
    power = (positions - middle) / scale_base
    return duplicate_interleaved(base ** power.unsqueeze(-1))


def axial_embedding(
    rows: Tensor, columns: Tensor, bands: Tensor, *, duplicate: Callable[[Tensor], Tensor] = duplicate_interleaved
) -> Tensor:
    """Returns timm's axial embedding [sin | cos], float32 [P, 2 D] with D = 4 * len(bands).

    Args:
        rows: Row of each patch, [P].
        columns: Column of each patch, [P].
        bands: Inverse frequencies, float32 [D / 4]; the row's angles come first, then the column's.
        duplicate: `duplicate_interleaved` (timm's default) or `duplicate_half` (for `rotate_halves`).
    """
    table = duplicate(torch.cat((angles(rows, bands), angles(columns, bands)), dim=-1))
    return torch.cat((table.sin(), table.cos()), dim=-1)


def apply_to_patches(
    x: Tensor, embedding: Tensor, prefix_tokens: int, *, rotate: Callable[[Tensor], Tensor] = rotate_pairs_strided
) -> Tensor:
    """Returns x with all but its first `prefix_tokens` positions rotated, in x's dtype.

    Args:
        x: [B, H, prefix + P, D].
        embedding: timm's [sin | cos] (sine first), [P, 2 D].
        prefix_tokens: Class and register tokens at the front, which have no position.
        rotate: As in `apply_rotary`; with `rotate_halves` the embedding's halves must be in that layout.
    """
    sin, cos = embedding.chunk(2, dim=-1)
    patches = apply_rotary(x[:, :, prefix_tokens:], cos, sin, rotate=rotate)
    return torch.cat((x[:, :, :prefix_tokens], patches), dim=2) if prefix_tokens else patches
