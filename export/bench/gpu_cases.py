"""The contenders of one shape on a GPU: the plugin's kernel, and PyTorch's attentions with a rotation before them.

Q, K and V come as [B, H, S, D]: what lays them out is the same for all and not timed. Where there is RoPE ("full",
"causal"; "decode" turns the query alone, after a cache of rotated keys) everybody's is in its time.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.bench import torch_contenders
from export.bench.contender import EXPORT, OURS, TORCH, YARDSTICK, Contender, Opened, not_here
from export.bench.shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

ROTATED = ("full", "causal", "decode")
"""Families with RoPE."""
INSIDE, BEFORE, KERNEL = "attnproof kernel, RoPE inside", "attnproof kernel, K rotated before", "attnproof kernel"
UNPADDED = "attnproof kernel, no padding"
"""The same call with every key kept: what the time of the padded one is held against."""
SEPARATE = "our RoPE + SDPA {}"
ORT = {"ONNX Runtime CUDA, as exported": EXPORT, "ONNX Runtime CUDA, attnproof": OURS}


@dataclass(frozen=True)
class Inputs:
    """One set: q [B, H, S, D], k and v [B, Hkv, T, D]; tables [T, D/2] in float32; lengths int32 [B], or None."""

    q: "Tensor"
    k: "Tensor"
    v: "Tensor"
    cos: "Tensor"
    sin: "Tensor"
    lengths: "Tensor | None"


def draw(shape: Shape, seed: int, device: str) -> Inputs:
    """Returns normal inputs in bfloat16; lengths as the shape says."""
    import torch

    made = torch.Generator().manual_seed(seed)
    there = torch.Generator(device).manual_seed(seed)
    sizes = ((shape.heads, shape.queries), (shape.kv_heads, shape.key_count), (shape.kv_heads, shape.key_count))
    q, k, v = (
        torch.randn(shape.batch, h, n, shape.size, generator=there, device=device, dtype=torch.bfloat16)
        for h, n in sizes
    )
    frequencies = 10000.0 ** (-torch.arange(shape.size // 2).double() / (shape.size // 2))
    angles = torch.arange(shape.key_count).double()[:, None] * frequencies
    lengths = None
    if shape.family == "lengths":
        keys = shape.key_count
        lengths = torch.randint(keys // 4, keys + 1, (shape.batch,), generator=made, dtype=torch.int32)
        if shape.kept:
            lengths = torch.full((shape.batch,), int(keys * shape.kept), dtype=torch.int32)
        lengths = lengths.to(device)
    return Inputs(q, k, v, angles.cos().float().to(device), angles.sin().float().to(device), lengths)


def kept_pairs(shape: Shape, inputs: Inputs) -> int:
    """Returns how many pairs of a query and a key there are to compute."""
    return shape.pairs() if inputs.lengths is None else int(inputs.lengths.sum()) * shape.queries


def contenders(shape: Shape, sets: Sequence[Inputs], flex: bool = True) -> tuple[Contender, ...]:
    """Returns everybody who computes the shape; each takes the next set of inputs with each call."""
    eager = _rotating("torch eager, decomposed", EXPORT, sets, lambda x: lambda: _eager(shape, x))
    kernels: list[tuple[str, str, Callable[[Inputs], Callable[[], Any]]]] = []
    if shape.family in ("full", "causal"):
        kernels += [
            (INSIDE, OURS, lambda x: _kernel(shape, x, True)),
            (BEFORE, OURS, lambda x: _kernel(shape, x, False)),
        ]
    else:
        kernels += [(KERNEL, OURS, lambda x: _kernel(shape, x, False))]
    if shape.family == "lengths":
        kernels += [(UNPADDED, YARDSTICK, lambda x: _kernel(shape, x, False, padded=False))]

    def sdpa(name: str, backend: str, ours: bool) -> Contender:
        return _rotating(name, TORCH, sets, lambda x: _sdpa(shape, x, backend, _turner(x) if ours else _turn))

    backends = {name.removesuffix("_ATTENTION"): name for name in torch_contenders.BACKENDS}
    separate = ("CUDNN", "FLASH") if shape.family in ROTATED else ()
    return (
        eager,
        *(_rotating(name, kind, sets, make) for name, kind, make in kernels),
        *(sdpa(f"torch SDPA {short}", backend, False) for short, backend in backends.items()),
        *(sdpa(SEPARATE.format(short), backends[short], True) for short in separate),
        *([_rotating("torch flex_attention, compiled", TORCH, sets[:1], lambda x: _flex(shape, x))] if flex else []),
        *(
            not_here(
                name,
                OURS if "attnproof" in name else EXPORT,
                "Files are timed: python -m export bench MODEL.onnx --device cuda.",
            )
            for name in ORT
        ),
    )


def _rotating(name: str, kind: str, sets: Sequence[Inputs], make: Callable[[Inputs], Callable[[], Any]]) -> Contender:
    def open_() -> Opened:
        calls = [make(one) for one in sets]
        first = torch_contenders.opened(calls[0], ("output",))
        turns = itertools.cycle([first, *(torch_contenders.opened(call, ("output",)) for call in calls[1:])])
        return Opened(lambda: next(turns).call(), first.outputs)

    return Contender(name, kind, open_, stage="lowered" if kind == OURS else "")


def _kernel(shape: Shape, x: Inputs, inside: bool, padded: bool = True) -> Callable[[], Any]:
    from plugins.torch_operator import rotary_attention

    rotary = (x.cos, x.sin) if shape.family in ROTATED else None
    before = _turner(x) if shape.family in ("full", "causal") and not inside else None
    # Of a query after a cache the position is the last: that is what lower right means.
    kind = {"causal": 1, "decode": 2}.get(shape.family, 0)

    def call() -> Any:
        key = x.k if before is None else before(x.k, x)
        return rotary_attention(
            x.q, key, x.v, rotary=rotary, lengths=x.lengths if padded else None, causal_kind=kind, rotate_key=inside
        )

    return call


def _sdpa(shape: Shape, x: Inputs, backend: str, turn: Callable[..., Any]) -> Callable[[], Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    if x.q.device.type == "cpu":
        torch_contenders.require_cpu_kernel(backend)
    mask = _mask(shape, x)

    def call() -> Any:
        q, k = _both(shape, x, turn)
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return scaled_dot_product_attention(
                q, k, x.v, attn_mask=mask, is_causal=shape.family == "causal", enable_gqa=shape.heads != shape.kv_heads
            )

    return call


def _flex(shape: Shape, x: Inputs) -> Callable[[], Any]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch_contenders.require_compiler(x.q.device.type)
    lengths = x.lengths
    rules: dict[str, Callable[..., Any]] = {"causal": lambda b, h, query, key: query >= key}
    if lengths is not None:
        rules["lengths"] = lambda b, h, query, key: key < lengths[b]
    rule = rules.get(shape.family)
    block = None
    if rule:
        batch = None if lengths is None else shape.batch
        block = create_block_mask(rule, batch, None, shape.queries, shape.key_count, device=str(x.q.device))

    def whole(q: "Tensor", k: "Tensor", v: "Tensor") -> Any:
        if shape.family in ROTATED:
            q, k = _both(shape, Inputs(q, k, v, x.cos, x.sin, None), _turn)
        return flex_attention(q, k, v, block_mask=block, enable_gqa=shape.heads != shape.kv_heads)

    compiled = torch.compile(whole, dynamic=False, fullgraph=True)
    return lambda: compiled(x.q, x.k, x.v)


def _eager(shape: Shape, x: Inputs) -> Any:
    import torch

    q, k = _both(shape, x, _turn)
    k, v = (t.repeat_interleave(shape.heads // shape.kv_heads, dim=1) for t in (k, x.v))
    scores = q @ k.mT * shape.size**-0.5
    keep = _mask(shape, x)
    if shape.family == "causal":
        keep = torch.ones(shape.queries, shape.key_count, dtype=torch.bool, device=q.device).tril()
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _mask(shape: Shape, x: Inputs) -> "Tensor | None":
    """Returns the padding mask [B, 1, 1, T], True = keep."""
    import torch

    if x.lengths is None:
        return None
    return (torch.arange(shape.key_count, device=x.q.device) < x.lengths[:, None])[:, None, None]


def _both(shape: Shape, x: Inputs, turn: Callable[..., Any]) -> "tuple[Tensor, Tensor]":
    """Returns Q and K as the products take them: rotated where the family has RoPE, a cache's K already."""
    if shape.family not in ROTATED:
        return x.q, x.k
    return turn(x.q, x), x.k if shape.family == "decode" else turn(x.k, x)


def _turn(t: "Tensor", x: Inputs) -> Any:
    """Returns t [B, H, S, D] rotated by the last S positions, as models write it: rotate half, in its own type."""
    import torch

    cos, sin = (torch.cat((table, table), -1)[-t.shape[2] :].to(t.dtype) for table in (x.cos, x.sin))
    one, two = t.chunk(2, -1)
    return t * cos + torch.cat((-two, one), -1) * sin


def _turner(x: Inputs) -> Callable[..., Any]:
    """Returns our rotation as a pass of its own: float32 inside, one kernel, compiled on a GPU."""
    import torch

    from plugins.contract import Settings
    from plugins.eager import rotated

    settings = Settings(1.0, rotary_embedding_dim=x.q.shape[3])
    compiled: Any = rotated if x.q.device.type == "cpu" else torch.compile(rotated, dynamic=False)
    ends = torch.arange(x.k.shape[2], device=x.q.device)[None]

    def turn(t: "Tensor", _: Inputs) -> Any:
        return compiled(t, ends[:, -t.shape[2] :], x.cos, x.sin, settings)

    return turn
