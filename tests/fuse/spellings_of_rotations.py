"""Rotary embeddings as models write them, on q [B, 4, S, 8], x [B, S, 32] and positions p [B, S]; and near misses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from spelling import HEADS, D
from torch import Tensor, nn

HALF = D // 2
LONGEST = 64


@dataclass(frozen=True)
class Turning:
    """One spelling and what becomes of it.

    Attributes:
        call: The function, or a module class.
        codes: The codes of its rotations' rows.
        half: It is run in float16.
        only: The one exporter that takes it; None for both.
    """

    call: Callable[..., Tensor | tuple[Tensor, ...]]
    codes: tuple[str, ...] = ("R001",)
    half: bool = False
    only: str | None = None

    @property
    def name(self) -> str:
        return self.call.__name__

    def module(self) -> nn.Module:
        made = self.call() if isinstance(self.call, type) else _Function(self.call)
        return made.eval()


class _Function(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.forward = function


ALL: list[Turning] = []


def turning(*codes: str, half: bool = False, only: str | None = None) -> Callable:
    def register(call: Callable) -> Callable:
        ALL.append(Turning(call, codes or ("R001",), half, only))
        return call

    return register


def angles(length: int, width: int = D) -> Tensor:
    """The angles [S, width / 2] of the first positions."""
    return torch.arange(length).float()[:, None] * 100.0 ** -(torch.arange(0, width, 2) / width)


def twice(t: Tensor) -> Tensor:
    return torch.cat((t, t), dim=-1)


def pairwise(t: Tensor) -> Tensor:
    return torch.stack((t, t), dim=-1).flatten(-2)


def tables(q: Tensor, double: Callable[[Tensor], Tensor] = twice, width: int = D) -> tuple[Tensor, Tensor]:
    a = double(angles(q.shape[2], width))
    return a.cos(), a.sin()


def rotate_half(y: Tensor) -> Tensor:
    half = y.shape[-1] // 2
    return torch.cat((-y[..., half:], y[..., :half]), dim=-1)


def rotate_pairs(y: Tensor) -> Tensor:
    return torch.stack((-y[..., 1::2], y[..., ::2]), dim=-1).flatten(-2)


# how the channels are turned


@turning()
def halves(q):
    cos, sin = tables(q)
    return q * cos + rotate_half(q) * sin


@turning()
def the_sine_first_and_a_factor_minus_one(q):
    cos, sin = tables(q)
    return sin * torch.cat((q[..., HALF:] * -1.0, q[..., :HALF]), dim=-1) + cos * q


@turning()
def the_minus_on_the_other_half_subtracted(q):
    cos, sin = tables(q)
    return q * cos - torch.cat((q[..., HALF:], -q[..., :HALF]), dim=-1) * sin


@turning()
def rolled_times_a_sign(q):
    cos, sin = tables(q)
    sign = torch.tensor([-1.0] * HALF + [1.0] * HALF)
    return q * cos + torch.roll(q, HALF, dims=-1) * sign * sin


@turning()
def rolled_and_the_sign_in_the_sine(q):
    a = angles(q.shape[2])
    return q * twice(a.cos()) + torch.roll(q, HALF, dims=-1) * torch.cat((-a.sin(), a.sin()), dim=-1)


@turning()
def gathered_times_a_sign(q):
    cos, sin = tables(q)
    order = torch.tensor([*range(HALF, D), *range(HALF)])
    return q * cos + q.index_select(-1, order) * torch.tensor([-1.0] * HALF + [1.0] * HALF) * sin


@turning()
def a_matrix_turns(q):
    cos, sin = tables(q)
    turned = torch.zeros(D, D)
    turned[torch.arange(HALF, D), torch.arange(HALF)] = -1.0
    turned[torch.arange(HALF), torch.arange(HALF, D)] = 1.0
    return q * cos + (q @ turned) * sin


@turning()
def flipped_halves(q):
    cos, sin = tables(q)
    flipped = q.unflatten(-1, (2, HALF)).flip(-2) * torch.tensor([[-1.0], [1.0]])
    return q * cos + flipped.flatten(-2) * sin


@turning()
def pairs(q):
    cos, sin = tables(q, pairwise)
    return q * cos + rotate_pairs(q) * sin


@turning()
def pairs_chosen_by_parity(q):
    cos, sin = tables(q, pairwise)
    even = torch.arange(D) % 2 == 0
    return q * cos + torch.where(even, -torch.roll(q, -1, dims=-1), torch.roll(q, 1, dims=-1)) * sin


@turning()
def parts_of_complex_numbers(q):
    a = angles(q.shape[2])
    re, im = q.unflatten(-1, (-1, 2)).unbind(-1)
    turned = re * a.cos() - im * a.sin(), re * a.sin() + im * a.cos()
    return torch.stack(turned, dim=-1).flatten(-2)


@turning()
def numbers_multiplied_as_pairs(q):
    z = q.unflatten(-1, (-1, 2))
    f = torch.stack((angles(q.shape[2]).cos(), angles(q.shape[2]).sin()), dim=-1)
    re = z[..., 0] * f[..., 0] - z[..., 1] * f[..., 1]
    im = z[..., 0] * f[..., 1] + z[..., 1] * f[..., 0]
    return torch.stack((re, im), dim=-1).flatten(3)


@turning(only="dynamo")
def complex_numbers(q):
    a = angles(q.shape[2])
    z = torch.view_as_complex(q.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * torch.view_as_complex(torch.stack((a.cos(), a.sin()), dim=-1))).flatten(-2)


@turning()
def chunks_and_narrow_tables(q):
    cos, sin = angles(q.shape[2]).cos(), angles(q.shape[2]).sin()
    one, two = q.chunk(2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


@turning()
def tables_cut_in_two(q):
    cos, sin = tables(q)
    one, two = q[..., :HALF], q[..., HALF:]
    return torch.cat((one * cos[:, :HALF] - two * sin[:, :HALF], two * cos[:, HALF:] + one * sin[:, HALF:]), dim=-1)


@turning()
def pairs_put_into_halves(q):
    cos, sin = tables(q)
    y = q.unflatten(-1, (HALF, 2)).transpose(-1, -2).flatten(-2)
    return y * cos + rotate_half(y) * sin


@turning()
def pairs_in_halves_out(q):
    a = angles(q.shape[2])
    re, im = q[..., ::2], q[..., 1::2]
    return torch.cat((re * a.cos() - im * a.sin(), im * a.cos() + re * a.sin()), dim=-1)


@turning()
def the_other_way_round(q):
    a = angles(q.shape[2])
    one, two = q.chunk(2, dim=-1)
    return torch.cat((one * a.cos() + two * a.sin(), two * a.cos() - one * a.sin()), dim=-1)


# which channels, and where they lie


@turning()
def the_first_half_of_the_channels(q):
    cos, sin = tables(q, width=HALF)
    part, rest = q[..., :HALF], q[..., HALF:]
    return torch.cat((part * cos + rotate_half(part) * sin, rest), dim=-1)


@turning()
def the_first_half_in_pairs_all_in_one_concat(q):
    a = angles(q.shape[2], HALF)
    one, two, rest = q[..., : HALF // 2], q[..., HALF // 2 : HALF], q[..., HALF:]
    return torch.cat((one * a.cos() - two * a.sin(), two * a.cos() + one * a.sin(), rest), dim=-1)


@turning()
def the_last_half_of_the_channels(q):
    a = angles(q.shape[2], HALF)
    rest, one, two = q.split([HALF, HALF // 2, HALF // 2], dim=-1)
    return torch.cat((rest, one * a.cos() - two * a.sin(), two * a.cos() + one * a.sin()), dim=-1)


@turning("R001", "R001")
def rows_and_columns_of_a_picture(q):
    a = angles(q.shape[2], HALF)
    row, column = q.chunk(2, dim=-1)
    return torch.cat(
        [y * twice(t).cos() + rotate_half(y) * twice(t).sin() for y, t in ((row, a), (column, a.flip(0)))], dim=-1
    )


@turning()
def before_the_heads_move(x):
    q = x.view(*x.shape[:2], HEADS, D)
    a = twice(angles(x.shape[1]))[:, None]
    return (q * a.cos() + rotate_half(q) * a.sin()).transpose(1, 2)


@turning()
def before_the_heads_are_split(x):
    a = pairwise(angles(x.shape[1]))
    first, rest = x[..., :D], x[..., D:]
    return torch.cat((first * a.cos() + rotate_pairs(first) * a.sin(), rest), dim=-1)


@turning()
def the_length_first(x):
    q = x.transpose(0, 1).unflatten(-1, (HEADS, D))
    a = twice(angles(x.shape[1]))[:, None, None]
    return (q * a.cos() + rotate_half(q) * a.sin()).transpose(0, 1).flatten(2)


@turning()
def without_a_batch(x):
    q = x[0].unflatten(-1, (HEADS, D))
    a = twice(angles(x.shape[1]))[:, None]
    return q * a.cos() + rotate_half(q) * a.sin()


@turning()
def a_token_in_front_stays(q):
    front, rest = q[:, :, :1], q[:, :, 1:]
    cos, sin = tables(rest)
    return torch.cat((front, rest * cos + rotate_half(rest) * sin), dim=2)


# where the tables come from


class SlicedBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cos", twice(angles(LONGEST)).cos())
        self.register_buffer("sin", twice(angles(LONGEST)).sin())

    def forward(self, q):
        return q * self.cos[: q.shape[2]] + rotate_half(q) * self.sin[: q.shape[2]]


class BuffersByPosition(SlicedBuffers):
    def forward(self, q, p):
        cos, sin = self.cos[p].unsqueeze(1), self.sin[p].unsqueeze(1)
        return q * cos + rotate_half(q) * sin


class OneTableOfSinesAndCosines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.cat((angles(LONGEST).sin(), angles(LONGEST).cos()), dim=-1))

    def forward(self, q, p):
        sin, cos = self.table(p)[:, None].chunk(2, dim=-1)
        return q * pairwise(cos) + rotate_pairs(q) * pairwise(sin)


turning()(SlicedBuffers)
turning()(BuffersByPosition)
turning()(OneTableOfSinesAndCosines)


@turning("R001", "R001")
def a_product_of_positions_for_q_and_k(q, k, p):
    inverse = (100.0 ** -(torch.arange(0, D, 2) / D))[None, :, None].expand(p.shape[0], -1, 1)
    a = twice((inverse @ p[:, None, :].float()).transpose(1, 2))
    cos, sin = a.cos().unsqueeze(1), a.sin().unsqueeze(1)
    return tuple(y * cos + rotate_half(y) * sin for y in (q, k[:, :, :1] * q))


@turning()
def an_einsum_of_positions(q):
    a = torch.einsum("i,j->ij", torch.arange(q.shape[2]).float(), 100.0 ** -(torch.arange(0, D, 2) / D))
    return q * twice(a).cos()[None, None] + rotate_half(q) * twice(a).sin()[None, None]


@turning()
def an_outer_product_of_doubled_frequencies(q):
    a = torch.outer(torch.arange(q.shape[2]).float(), twice(100.0 ** -(torch.arange(0, D, 2) / D)))
    return q * a.cos() + rotate_half(q) * a.sin()


@turning()
def scaled_tables(q):
    cos, sin = tables(q)
    return q * (cos * 0.7) + rotate_half(q) * (sin * 0.7)


@turning()
def frequencies_by_length(q):
    length = torch.arange(q.shape[2])[-1:] + 1
    factor = torch.where(length > 8, torch.linspace(1.0, 2.0, HALF), torch.ones(HALF))
    a = twice(angles(q.shape[2]) / factor)
    return q * a.cos() + rotate_half(q) * a.sin()


@turning()
def sections_of_three_positions(q, p):
    rows = torch.stack((p, p + 1, p + 2))[..., None] * 100.0 ** -(torch.arange(0, D, 2) / D)
    cos, sin = twice(rows).cos(), twice(rows).sin()
    sections = [1, 1, 2] * 2
    cos, sin = (
        torch.cat([part[i % 3] for i, part in enumerate(t.split(sections, dim=-1))], dim=-1)[:, None]
        for t in (cos, sin)
    )
    return q * cos + rotate_half(q) * sin


@turning("R001", "R001")
def a_decay_in_both_tables(q, k):
    cos, sin = tables(q, pairwise)
    decay = pairwise(((torch.arange(0, D, 2) + 3.2) / 11.2) ** (torch.arange(q.shape[2])[:, None] / 16))
    k = k[:, :, :1] * q
    return q * cos * decay + rotate_pairs(q) * sin * decay, k * cos / decay + rotate_pairs(k) * sin / decay


@turning()
def a_decay_of_x(q):
    cos, sin = tables(q)
    y = q * ((torch.arange(q.shape[2])[:, None] + 1) / 16.0)
    return y * cos + rotate_half(y) * sin


# precision


@turning(half=True)
def tables_cast_to_half(q):
    cos, sin = (t.to(q.dtype) for t in tables(q))
    return q * cos + rotate_half(q) * sin


@turning(half=True)
def turned_in_float32(q):
    cos, sin = tables(q)
    y = q.float()
    return (y * cos + rotate_half(y) * sin).type_as(q)


@turning(half=True)
def promoted_to_float32_by_the_tables(q):
    cos, sin = tables(q)
    return ((q * cos) + (rotate_half(q) * sin)).type_as(q)


# near misses: they stay, and mean what they meant


@turning("R102")
def no_minus(q):
    cos, sin = tables(q)
    return q * cos + torch.cat((q[..., HALF:], q[..., :HALF]), dim=-1) * sin


@turning("R102")
def two_minuses(q):
    cos, sin = tables(q)
    return q * cos + torch.cat((-q[..., HALF:], -q[..., :HALF]), dim=-1) * sin


@turning("R101")
def one_half_a_position_later(q):
    a = torch.cat((angles(q.shape[2]), angles(q.shape[2] + 1)[1:]), dim=-1)
    return q * a.cos() + rotate_half(q) * a.sin()


@turning("R101")
def halves_by_the_tables_of_pairs(q):
    cos, sin = tables(q, pairwise)
    return q * cos + rotate_half(q) * sin


@turning("R101")
def sine_and_cosine_exchanged_in_one_half(q):
    a = angles(q.shape[2])
    one, two = q.chunk(2, dim=-1)
    return torch.cat((one * a.sin() - two * a.cos(), two * a.cos() + one * a.sin()), dim=-1)


@turning("R101")
def one_half_scaled(q):
    a = angles(q.shape[2])
    one, two = q.chunk(2, dim=-1)
    return torch.cat((one * a.cos() - two * a.sin(), two * a.cos() * 2.0 + one * a.sin() * 2.0), dim=-1)


class TablesThatDifferALittle(SlicedBuffers):
    def __init__(self) -> None:
        super().__init__()
        self.cos[3, 1] += 1e-6


turning("R101")(TablesThatDifferALittle)


@turning("R103")
def a_table_for_each_head_and_row(q, k):
    a = angles(q.shape[2]) * k[:, :, :1, :1]
    one, two = q.chunk(2, dim=-1)
    return torch.cat((one * a.cos() - two * a.sin(), two * a.cos() + one * a.sin()), dim=-1)


def nothing(call: Callable) -> Callable:
    ALL.append(Turning(call, ()))
    return call


@turning("R101")
def another_tensor_is_turned(q, k):
    cos, sin = tables(q)
    return q * cos + rotate_half(q * k[:, :, :1]) * sin


@nothing
def rolled_too_little(q):
    cos, sin = tables(q)
    return q * cos + torch.roll(q, HALF // 2, dims=-1) * torch.tensor([-1.0] * HALF + [1.0] * HALF) * sin


@nothing
def overlapping_halves(q):
    cos, sin = angles(q.shape[2]).cos(), angles(q.shape[2]).sin()
    one, two = q[..., :HALF], q[..., 2 : HALF + 2]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


@nothing
def squared(q):
    cos, sin = tables(q)
    return q * q * cos + rotate_half(q) * sin


@nothing
def sums_and_differences(q):
    one, two = q.chunk(2, dim=-1)
    return torch.cat((one - two, two + one), dim=-1)


@nothing
def a_reversed_half(q):
    cos, sin = tables(q)
    return q * cos + torch.cat((-q[..., HALF:].flip(-1), q[..., :HALF]), dim=-1) * sin
