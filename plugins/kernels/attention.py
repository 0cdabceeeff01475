"""RoPE, mask and attention in one kernel: softmax(softcap(scale * rope(Q) rope(K)^T) + bias) V over visible keys.

One program computes one tile of BLOCK_M query rows of one query head, walking the keys in tiles of BLOCK_N with an
online softmax (Milakov and Gimelshein 2018; Dao 2023). Scores, their softmax and the accumulator are float32, rotation
is float32, and Q and K are rounded back to their own type before the product, as a rotation outside would leave them.

All tensors are dense and row-major. What differs between operators (head sizes, mask, rotation, scale) is `constexpr`;
what differs between calls (lengths) is an integer argument, so one compiled kernel serves every shape.
"""

import triton
import triton.language as tl


@triton.jit
def _rotate(x, partner, cos, sin, turned, positive):
    """Returns x*cos + (-partner or +partner)*sin where the column is one of the rotated ones, else x."""
    other = tl.where(positive, partner, -partner)
    return tl.where(turned, x * cos + other * sin, x)


@triton.jit
def _angles(table, positions, columns, seen, limit, HALF: tl.constexpr):
    """Loads rows of a table [limit, HALF] at `positions`, clamped into it so that no address is out of bounds."""
    rows = tl.minimum(tl.maximum(positions, 0), limit - 1)
    return tl.load(table + rows[:, None] * HALF + columns[None, :], mask=seen, other=0.0).to(tl.float32)


@triton.jit
def rotary_attention(
    q,  # [B, HEADS, queries, D]
    k,  # [B, KV_HEADS, keys, D]
    v,  # [B, KV_HEADS, keys, DV]
    cos,  # [positions, ROTARY / 2]; any pointer where ROTARY == 0
    sin,  # [positions, ROTARY / 2]
    bias,  # [B or 1, HEADS or 1, queries or 1, keys]; any pointer where not BIAS
    lengths,  # int32 [B], keys that may be seen; any pointer where not LENGTHS
    queries,
    keys,
    positions,
    bias_batches,  # the sizes of bias's first three axes: 1, or that of the scores
    bias_heads,
    bias_rows,
    out,  # [B, HEADS, queries, DV]; last, as TensorRT passes inputs, integers, outputs
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    LOWER_RIGHT: tl.constexpr,
    WINDOW: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROTATE_K: tl.constexpr,
    BIAS: tl.constexpr,
    LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Writes one tile of `out`; grid [tiles of BLOCK_M queries, B * HEADS]. `plugins.contract` says what each means."""
    tile = tl.program_id(0)
    plane = tl.program_id(1)
    batch = plane // HEADS
    head = plane % HEADS
    group: tl.constexpr = HEADS // KV_HEADS
    half: tl.constexpr = ROTARY // 2 if ROTARY > 0 else 1

    visible = keys
    if LENGTHS:
        visible = tl.minimum(tl.maximum(tl.load(lengths + batch), 0), keys)
    # The row of the last query: with the last key (a cache, then new tokens), or each query i with key i.
    shift = visible - queries if LOWER_RIGHT else 0

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    at = rows + shift
    columns = tl.arange(0, BLOCK_D)
    values = tl.arange(0, BLOCK_DV)
    row_in = rows < queries
    column_in = columns < D

    # Which table column turns a column, which column it is paired with, and the sign of its partner.
    if INTERLEAVED:
        angle = columns // 2
        paired = columns ^ 1
        positive = (columns % 2) == 1
    else:
        angle = columns % half
        paired = (columns + half) % (2 * half)
        positive = columns >= half
    turned = columns < ROTARY

    kv_plane = (batch * KV_HEADS + head // group).to(tl.int64)
    q_start = q + plane.to(tl.int64) * queries * D
    k_start = k + kv_plane * keys * D
    v_start = v + kv_plane * keys * DV
    in_q = row_in[:, None] & column_in[None, :]
    query = tl.load(q_start + rows[:, None] * D + columns[None, :], mask=in_q, other=0.0)
    if ROTARY > 0:
        in_turn = row_in[:, None] & turned[None, :]
        partner = tl.load(q_start + rows[:, None] * D + paired[None, :], mask=in_turn, other=0.0).to(tl.float32)
        c = _angles(cos, at, angle, in_turn, positions, half)
        s = _angles(sin, at, angle, in_turn, positions, half)
        query = _rotate(query.to(tl.float32), partner, c, s, turned[None, :], positive[None, :]).to(q.dtype.element_ty)

    bias_start = bias
    if BIAS:
        plane_of_bias = tl.where(bias_batches > 1, batch, 0) * bias_heads + tl.where(bias_heads > 1, head, 0)
        bias_start = bias + plane_of_bias.to(tl.int64) * bias_rows * keys

    log2e: tl.constexpr = 1.4426950408889634
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_v = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    first = 0
    last = visible
    if CAUSAL:
        last = tl.minimum(visible, tl.maximum((tile + 1) * BLOCK_M + shift, 0))
    if WINDOW > 0:
        first = tl.maximum(tile * BLOCK_M + shift - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    for start in range(first, last, BLOCK_N):
        cells = start + tl.arange(0, BLOCK_N)
        cell_in = cells < visible
        in_k = cell_in[:, None] & column_in[None, :]
        key = tl.load(k_start + cells[:, None] * D + columns[None, :], mask=in_k, other=0.0)
        if ROTATE_K:
            in_turn_k = cell_in[:, None] & turned[None, :]
            partner_k = tl.load(k_start + cells[:, None] * D + paired[None, :], mask=in_turn_k, other=0.0)
            ck = _angles(cos, cells, angle, in_turn_k, positions, half)
            sk = _angles(sin, cells, angle, in_turn_k, positions, half)
            turned_key = _rotate(
                key.to(tl.float32), partner_k.to(tl.float32), ck, sk, turned[None, :], positive[None, :]
            )
            key = turned_key.to(k.dtype.element_ty)
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
            there = bias_start + rows[:, None] * tl.where(bias_rows > 1, keys, 0) + cells[None, :]
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
            part = tl.dot(weights.to(v.dtype.element_ty).to(tl.float32), value.to(tl.float32), input_precision="ieee")
        else:
            part = tl.dot(weights.to(v.dtype.element_ty), value, input_precision=PRECISION)
        sum_v = sum_v * fade[:, None] + part
        best = now

    result = tl.where((total == 0.0)[:, None], 0.0, sum_v / tl.where(total == 0.0, 1.0, total)[:, None])
    out_start = out + plane.to(tl.int64) * queries * DV
    in_out = row_in[:, None] & (values < DV)[None, :]
    tl.store(out_start + rows[:, None] * DV + values[None, :], result.to(out.dtype.element_ty), mask=in_out)
