"""RoPE, mask and attention in one kernel: softmax(softcap(scale * rope(Q) rope(K)^T) + bias) V over visible keys.

One program computes one tile of BLOCK_M query rows of one query head, walking the keys in tiles of BLOCK_N
(`plugins.kernels.online_softmax`). All tensors are dense and row-major. What differs between operators (head sizes,
mask, rotation, scale) is `constexpr`; what differs between calls (lengths) is an integer argument, so one compiled
kernel serves every shape.
"""

import triton
import triton.language as tl

from plugins.kernels.online_softmax import fraction, nothing, rows_of, walk


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
    DESCRIPTORS: tl.constexpr,
    SPECIALIZED: tl.constexpr,
    PEELED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Writes one tile of `out`; grid [tiles of BLOCK_M queries, B * HEADS]. `plugins.contract` says what each means."""
    tile = tl.program_id(0)
    plane = tl.program_id(1)
    batch = plane // HEADS
    head = plane % HEADS
    group: tl.constexpr = HEADS // KV_HEADS

    visible = keys
    if LENGTHS:
        visible = tl.minimum(tl.maximum(tl.load(lengths + batch), 0), keys)
    # The row of the last query: with the last key (a cache, then new tokens), or each query i with key i.
    shift = visible - queries if LOWER_RIGHT else 0

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    at = rows + shift
    row_in = rows < queries
    kv_plane = (batch * KV_HEADS + head // group).to(tl.int64)
    q_start = q + plane.to(tl.int64) * queries * D
    query = rows_of(q_start, rows, row_in, at, cos, sin, positions, D, ROTARY, INTERLEAVED, BLOCK_D)

    bias_start = bias
    bias_row = rows
    if BIAS:
        plane_of_bias = tl.where(bias_batches > 1, batch, 0) * bias_heads + tl.where(bias_heads > 1, head, 0)
        bias_start = bias + plane_of_bias.to(tl.int64) * bias_rows * keys
        bias_row = rows * tl.where(bias_rows > 1, keys, 0)

    first = 0
    last = visible
    if CAUSAL:
        last = tl.minimum(visible, tl.maximum((tile + 1) * BLOCK_M + shift, 0))
    if WINDOW > 0:
        first = tl.maximum(tile * BLOCK_M + shift - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    k_start = k + kv_plane * keys * D
    v_start = v + kv_plane * keys * DV
    best, total, sum_v = nothing(BLOCK_M, BLOCK_DV)
    for part in tl.static_range(2):
        # Whole tiles of keys that every query of this tile sees come first, without any masking.
        if part == 1 or (PEELED and WINDOW == 0):
            start, end = first, last
            if PEELED and WINDOW == 0:
                whole = visible
                if CAUSAL:
                    whole = tl.minimum(visible, tl.maximum(tile * BLOCK_M + shift + 1, 0))
                whole = whole // BLOCK_N * BLOCK_N
                start = 0 if part == 0 else whole
                end = whole if part == 0 else last
            best, total, sum_v = walk(
                best,
                total,
                sum_v,
                query,
                row_in,
                at,
                k_start,
                v_start,
                cos,
                sin,
                positions,
                bias_start,
                bias_row,
                start,
                end,
                visible,
                D,
                DV,
                SCALE,
                SOFTCAP,
                CAUSAL,
                WINDOW,
                ROTARY if ROTATE_K else 0,
                INTERLEAVED,
                BIAS,
                PRECISION,
                BLOCK_N,
                BLOCK_D,
                BLOCK_DV,
                DESCRIPTORS,
                SPECIALIZED,
                part == 0,
                WIDEN,
            )

    values = tl.arange(0, BLOCK_DV)
    out_start = out + plane.to(tl.int64) * queries * DV
    in_out = row_in[:, None] & (values < DV)[None, :]
    result = fraction(sum_v, total).to(out.dtype.element_ty)
    tl.store(out_start + rows[:, None] * DV + values[None, :], result, mask=in_out)
