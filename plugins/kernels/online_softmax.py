"""What the kernels share: queries are read and rotated, then the keys walked in tiles with an online softmax.

The softmax is Milakov and Gimelshein's (2018), as Dao (2023) uses it: a running maximum, a running sum, and the sum of
V weighted so far, all float32. Rotation is float32 too; what is rotated is rounded back to its own type before the
product, as a rotation outside would leave it. Rows are whatever a program puts in its tile: `at` says at which position
each stands.
"""

import triton
import triton.language as tl


@triton.jit
def turned_columns(columns, half: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Returns which column of the tables turns a column, which column it is paired with, and whether it adds it."""
    if INTERLEAVED:
        angle = columns // 2
        paired = columns ^ 1
        positive = (columns % 2) == 1
    else:
        angle = columns % half
        paired = (columns + half) % (2 * half)
        positive = columns >= half
    return angle, paired, positive


@triton.jit
def rotate(x, partner, cos, sin, turned, positive):
    """Returns x*cos + (-partner or +partner)*sin where the column is one of the rotated ones, else x."""
    other = tl.where(positive, partner, -partner)
    return tl.where(turned, x * cos + other * sin, x)


@triton.jit
def angles(table, positions, columns, seen, limit, HALF: tl.constexpr):
    """Loads rows of a table [limit, HALF] at `positions`, clamped into it so that no address is out of bounds."""
    rows = tl.minimum(tl.maximum(positions, 0), limit - 1)
    return tl.load(table + rows[:, None] * HALF + columns[None, :], mask=seen, other=0.0).to(tl.float32)


@triton.jit
def rows_of(
    start,  # the first row's address
    rows,  # [R]
    row_in,  # [R], whether there is such a row
    at,  # [R], its position
    cos,
    sin,
    positions,
    D: tl.constexpr,
    ROTARY: tl.constexpr,  # how many columns turn; 0 leaves the rows as they are
    INTERLEAVED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Returns rows [R, BLOCK_D] of Q or K in their own type, rotated."""
    columns = tl.arange(0, BLOCK_D)
    inside = row_in[:, None] & (columns < D)[None, :]
    found = tl.load(start + rows[:, None] * D + columns[None, :], mask=inside, other=0.0)
    if ROTARY > 0:
        half: tl.constexpr = ROTARY // 2
        angle, paired, positive = turned_columns(columns, half, INTERLEAVED)
        turned = columns < ROTARY
        in_turn = row_in[:, None] & turned[None, :]
        partner = tl.load(start + rows[:, None] * D + paired[None, :], mask=in_turn, other=0.0).to(tl.float32)
        c = angles(cos, at, angle, in_turn, positions, half)
        s = angles(sin, at, angle, in_turn, positions, half)
        mixed = rotate(found.to(tl.float32), partner, c, s, turned[None, :], positive[None, :])
        found = mixed.to(start.dtype.element_ty)
    return found


@triton.jit
def walk(
    query,  # [M, BLOCK_D]
    row_in,  # [M], whether there is such a query
    at,  # [M], its position among the keys
    k_start,  # addresses of the first key and value of the head
    v_start,
    cos,
    sin,
    positions,
    bias_start,  # address of the scores' bias, and how far each row's lies from it
    bias_row,
    first,  # the keys to walk: a multiple of BLOCK_N apart
    last,
    visible,  # keys that may be seen at all; none from there on is read
    D: tl.constexpr,
    DV: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    ROTARY_K: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Returns (maximum of the scores [M], sum of exp(score - maximum) [M], V weighted by those [M, BLOCK_DV]), float32.

    A row that sees no key has -inf, 0 and 0.
    """
    log2e: tl.constexpr = 1.4426950408889634
    values = tl.arange(0, BLOCK_DV)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_v = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for start in range(first, last, BLOCK_N):
        cells = start + tl.arange(0, BLOCK_N)
        cell_in = cells < visible
        key = rows_of(k_start, cells, cell_in, cells, cos, sin, positions, D, ROTARY_K, INTERLEAVED, BLOCK_D)
        if WIDEN:
            scores = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
        else:
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        scores = scores * SCALE
        if SOFTCAP > 0:
            # tanh(x) = 1 - 2 / (exp(2x) + 1): right at both ends, where exp overflows to infinity or vanishes.
            scores = SOFTCAP * (1 - 2 / (tl.exp2(scores * (2 * log2e / SOFTCAP)) + 1))
        keep = row_in[:, None] & cell_in[None, :]
        if BIAS:
            there = bias_start + bias_row[:, None] + cells[None, :]
            scores += tl.load(there, mask=keep, other=0.0).to(tl.float32)
        if CAUSAL:
            keep = keep & (cells[None, :] <= at[:, None])
        if WINDOW > 0:
            keep = keep & (at[:, None] - cells[None, :] < WINDOW)
        scores = tl.where(keep, scores, float("-inf"))

        now = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(now == float("-inf"), 0.0, now)  # a row that has seen no key yet
        weights = tl.exp2((scores - base[:, None]) * log2e)
        fade = tl.exp2((best - base) * log2e)
        total = total * fade + tl.sum(weights, 1)
        in_v = cell_in[:, None] & (values < DV)[None, :]
        value = tl.load(v_start + cells[:, None] * DV + values[None, :], mask=in_v, other=0.0)
        if WIDEN:
            part = tl.dot(
                weights.to(v_start.dtype.element_ty).to(tl.float32), value.to(tl.float32), input_precision="ieee"
            )
        else:
            part = tl.dot(weights.to(v_start.dtype.element_ty), value, input_precision=PRECISION)
        sum_v = sum_v * fade[:, None] + part
        best = now
    return best, total, sum_v


@triton.jit
def fraction(sum_v, total):
    """Returns sum_v / total by row, 0 where no key was seen."""
    return tl.where((total == 0.0)[:, None], 0.0, sum_v / tl.where(total == 0.0, 1.0, total)[:, None])
