"""What the kernels share: queries are read and rotated, then the keys walked in tiles with an online softmax.

The softmax is Milakov and Gimelshein's (2018), as Dao (2023) uses it: a running maximum, a running sum, and the sum of
V weighted so far, all float32. Rotation is float32 too; what is rotated is rounded back to its own type before the
product, as a rotation outside would leave it. Rows are whatever a program puts in its tile: `at` says at which position
each stands.

What was tried for speed, all of it variants in the data (`plugins.kernels.variants`), compiled for SM 90 and 120 by
Triton 3.9, right in its interpreter, and NOT RUN on a GPU:
- *peeled*: whole tiles of keys without a mask. Compiles for SM 80 and 89 too, at up to 32 registers more.
- *descriptors*: on SM 90 and 120 K and V come by TMA (cp.async.bulk.tensor), with wgmma on SM 90; at D = 128 and tiles
  of 128 x 128, 203 registers instead of 222. A descriptor made in the kernel lies in global scratch memory, 128 bytes
  each, which TensorRT gives no plugin: PyTorch's launch alone takes this variant. It takes PTX 8.6. Where K is rotated,
  K comes by pointers, since a rotation needs each row twice.
- *specialized* (`tl.range(warp_specialize=True)`): on SM 90 the compiler leaves the code as it was; on SM 120 loads get
  warps of their own (384 threads for 256, setmaxnreg) where they are by descriptors.
A persistent grid was not tried: causal tiles of unequal length are what it would even out, and only a GPU can say.
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
def below(BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """Returns which of BLOCK columns there are; a constant where all are, so that no load is masked for nothing."""
    return tl.full([BLOCK], 1, tl.int1) if BLOCK == SIZE else tl.arange(0, BLOCK) < SIZE


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
    inside = row_in[:, None] & below(BLOCK_D, D)[None, :]
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
def nothing(BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Returns what `walk` has before the first key: (-inf, 0, 0)."""
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    return best, tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)


@triton.jit
def walk(
    best,  # what was walked before, or `nothing`
    total,
    sum_v,
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
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    DESCRIPTORS: tl.constexpr,  # tiles of V, and of K where it is not rotated, are loaded by tensor descriptors
    SPECIALIZED: tl.constexpr,  # warps are specialised, as far as the compiler does
    EVERY: tl.constexpr,  # every query sees every one of these keys: nothing is masked
    WIDEN: tl.constexpr,
):
    """Returns (maximum of the scores [M], sum of exp(score - maximum) [M], V weighted by those [M, BLOCK_DV]), float32.

    A row that sees no key has -inf, 0 and 0.
    """
    log2e: tl.constexpr = 1.4426950408889634
    values = tl.arange(0, BLOCK_DV)
    if DESCRIPTORS:  # what lies beyond `visible` is 0 and not read
        if ROTARY_K == 0:
            k_tiles = tl.make_tensor_descriptor(k_start, [visible, D], [D, 1], [BLOCK_N, BLOCK_D])
        v_tiles = tl.make_tensor_descriptor(v_start, [visible, DV], [DV, 1], [BLOCK_N, BLOCK_DV])
    for start in tl.range(first, last, BLOCK_N, warp_specialize=SPECIALIZED):
        cells = start + tl.arange(0, BLOCK_N)
        cell_in = tl.full([BLOCK_N], 1, tl.int1) if EVERY else cells < visible
        if DESCRIPTORS and ROTARY_K == 0:
            key = k_tiles.load([start, 0])
        else:
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
        if not EVERY:
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
        if DESCRIPTORS:
            value = v_tiles.load([start, 0])
        else:
            in_v = cell_in[:, None] & below(BLOCK_DV, DV)[None, :]
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
