"""Attention of few queries to many keys, as in decoding: the keys are cut in splits, each with a program of its own.

A tile of `attention` holds queries of one head, so that decoding starts B * H programs of one useful row each, every
one of which reads all its keys: most of a GPU is idle, and H / G heads read the same K and V. Here the rows of a tile
are those of all query heads that share a key/value head (they lie side by side in Q), so that K and V are read once;
and a program walks one split of the keys that its batch row may see, so that a long cache keeps every multiprocessor
busy ("Flash-Decoding", Dao, Haziza, Massa and Sizov 2023). A split leaves its maximum, sum and weighted V in float32;
`combine` weighs the splits by exp(maximum - largest maximum) and divides once, which is exact.

Grid of `split_attention`: [tiles of BLOCK_M rows of the H / G * S there are, splits, B * G]; with one split (SPLIT off)
it writes the output itself. Which calls take this path, with how many splits: `plugins.kernels.splits`.

TensorRT: a plugin compiled ahead of time is one kernel and one launch for each node and tactic, with inputs, outputs
and int32 arguments (tensorrt 11.4, plugin/_plugin_class.py: `get_kernel` returns one name and code, `get_launch_params`
fills one grid, and IPluginV3QuickAOTBuild has no workspace among its methods). So the two launches of a split, and the
memory between them, do not fit the one node that we register. With SPLIT off it is one launch and needs no memory: it
would fit as a tactic, and pays only where B * G programs fill the GPU, which a builder that times one batch size cannot
know of the others. Two nodes, the partial results tensors between them, are possible by the interface; that was not
built, since nothing here could show that it is faster.
"""

import triton
import triton.language as tl

from plugins.kernels.online_softmax import fraction, nothing, rows_of, walk


@triton.jit(do_not_specialize=["splits"])  # one kernel for any number of them
def split_attention(
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
    splits,
    parts,  # float32 [B * KV_HEADS, splits, rows, DV], rows = HEADS / KV_HEADS * queries; any pointer where not SPLIT
    sums,  # float32 [B * KV_HEADS, splits, rows, 2]: maximum and sum of each row
    out,  # [B, HEADS, queries, DV]; not written where SPLIT
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
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPECIALIZED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Writes one tile of `parts` and `sums`, or of `out`; `plugins.contract` says what each argument means."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    plane = tl.program_id(2)
    batch = plane // KV_HEADS
    group: tl.constexpr = HEADS // KV_HEADS
    count = group * queries

    visible = keys
    if LENGTHS:
        visible = tl.minimum(tl.maximum(tl.load(lengths + batch), 0), keys)
    shift = visible - queries if LOWER_RIGHT else 0

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = rows < count
    at = rows % queries + shift
    wide_plane = plane.to(tl.int64)
    q_start = q + wide_plane * count * D
    query = rows_of(q_start, rows, row_in, at, cos, sin, positions, D, ROTARY, INTERLEAVED, BLOCK_D)

    bias_start = bias
    bias_row = rows
    if BIAS:
        head = plane % KV_HEADS * group
        plane_of_bias = tl.where(bias_batches > 1, batch, 0) * bias_heads + tl.where(bias_heads > 1, head, 0)
        bias_start = bias + plane_of_bias.to(tl.int64) * bias_rows * keys
        of_head = tl.where(bias_heads > 1, rows // queries, 0) * bias_rows
        bias_row = (of_head + tl.where(bias_rows > 1, rows % queries, 0)) * keys

    # The keys that any query sees, cut evenly: a batch row with few of them has splits as even as one with many.
    low = 0
    high = visible
    if CAUSAL:
        high = tl.minimum(visible, tl.maximum(queries + shift, 0))
    if WINDOW > 0:
        low = tl.maximum(shift - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(tl.maximum(high - low, 0), splits), BLOCK_N) * BLOCK_N
    first = low + split * share
    last = tl.minimum(first + share, high)
    best, total, sum_v = nothing(BLOCK_M, BLOCK_DV)
    best, total, sum_v = walk(
        best,
        total,
        sum_v,
        query,
        row_in,
        at,
        k + wide_plane * keys * D,
        v + wide_plane * keys * DV,
        cos,
        sin,
        positions,
        bias_start,
        bias_row,
        first,
        last,
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
        False,
        WIDEN,
    )

    values = tl.arange(0, BLOCK_DV)
    in_out = row_in[:, None] & (values < DV)[None, :]
    if SPLIT:
        there = (wide_plane * splits + split) * count
        tl.store(parts + there * DV + rows[:, None] * DV + values[None, :], sum_v, mask=in_out)
        tl.store(sums + there * 2 + rows * 2, best, mask=row_in)
        tl.store(sums + there * 2 + rows * 2 + 1, total, mask=row_in)
    else:
        result = fraction(sum_v, total).to(out.dtype.element_ty)
        tl.store(out + wide_plane * count * DV + rows[:, None] * DV + values[None, :], result, mask=in_out)


@triton.jit(do_not_specialize=["splits"])
def combine(
    parts,  # as `split_attention` left them
    sums,
    rows,
    splits,
    out,  # [B * KV_HEADS, rows, DV]
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Writes one row of `out` from all its splits; grid [rows, B * KV_HEADS]."""
    row = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64)
    log2e: tl.constexpr = 1.4426950408889634
    values = tl.arange(0, BLOCK_DV)
    at = tl.arange(0, BLOCK_S)
    best = tl.full([BLOCK_S], float("-inf"), tl.float32)
    for start in range(0, splits, BLOCK_S):
        there = (plane * splits + start + at) * rows + row
        best = tl.maximum(best, tl.load(sums + there * 2, mask=start + at < splits, other=float("-inf")))
    top = tl.max(best, 0)
    base = tl.where(top == float("-inf"), 0.0, top)  # a row that sees no key in any split
    total = tl.zeros([BLOCK_S], tl.float32)
    sum_v = tl.zeros([BLOCK_S, BLOCK_DV], tl.float32)
    for start in range(0, splits, BLOCK_S):
        there = (plane * splits + start + at) * rows + row
        is_in = start + at < splits
        weight = tl.exp2((tl.load(sums + there * 2, mask=is_in, other=float("-inf")) - base) * log2e)
        total += weight * tl.load(sums + there * 2 + 1, mask=is_in, other=0.0)
        inside = is_in[:, None] & (values < DV)[None, :]
        part = tl.load(parts + there[:, None] * DV + values[None, :], mask=inside, other=0.0)
        sum_v += weight[:, None] * part
    whole = tl.sum(total, 0)
    result = tl.where(whole == 0.0, 0.0, tl.sum(sum_v, 0) / tl.where(whole == 0.0, 1.0, whole))
    tl.store(out + (plane * rows + row) * DV + values, result.to(out.dtype.element_ty), mask=values < DV)
