"""The plugin operator as `torch.ops.attnproof.rotary_attention`: eager on a CPU, the Triton kernel on a GPU.

`rotary_attention` is the friendly way to call it; `translation_table` lets `torch.onnx.export` write it as the plugin
node, under which `plugins.onnx_function` puts the body that ONNX Runtime runs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from plugins.contract import ROTARY_ATTENTION, Settings, output_shape
from plugins.eager import rotary_attention_eager


def rotary_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    softcap: float = 0.0,
    causal_kind: int = 0,
    window: int = 0,
    interleaved: bool = False,
    rotate_key: bool = True,
) -> torch.Tensor:
    """Attention with RoPE, mask and softcap in one operator.

    Args:
        q: [B, H, S, D], fp16, bf16 or fp32.
        k: [B, G, T, D] of the same type; H is a multiple of G.
        v: [B, G, T, E] of the same type.
        scale: Factor of Q K^T; 1/sqrt(D) where it is None.
        rotary: Tables (cos, sin), each [positions, R] in float32: 2R columns of Q are rotated.
        bias: [1 or B, 1 or H, 1 or S, T], added to the scores; -inf hides a key.
        lengths: int32 [B], how many keys of each batch row may be seen.
        softcap: c of c*tanh(x/c), 0 for none.
        causal_kind: 0 none, 1 upper left, 2 lower right (`plugins.contract`).
        window: How many keys back a query sees, 0 for all.
        interleaved: Whether neighbouring columns are rotated as a pair, or column i with column i + R.
        rotate_key: Whether K is rotated too (where `rotary` is given), or already was.

    Returns:
        [B, H, S, E]; rows that see no key are 0.

    Raises:
        ValueError: Shapes or settings break the contract; the sentence says which and how.
    """
    cos, sin = rotary if rotary is not None else (_unread(q, (1, 1), torch.float32),) * 2
    return torch.ops.attnproof.rotary_attention(  # type: ignore[no-any-return]
        q,
        k,
        v,
        cos,
        sin,
        _unread(q, (1, 1, 1, 1), q.dtype) if bias is None else bias,
        _unread(q, (1,), torch.int32) if lengths is None else lengths,
        q.shape[-1] ** -0.5 if scale is None else scale,
        softcap,
        causal_kind,
        window,
        0 if rotary is None else 2 * cos.shape[-1],
        int(interleaved),
        int(rotate_key and rotary is not None),
        int(bias is not None),
        int(lengths is not None),
    )


def _unread(q: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Returns what stands for an input that is not given; on a GPU always the same, as filling it takes a launch."""
    if q.is_cuda and type(q) is torch.Tensor:  # what traces hands in tensors of its own types
        return _kept(shape, dtype, q.device)
    return torch.zeros(shape, dtype=dtype, device=q.device)


@functools.cache
def _kept(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


@torch.library.custom_op("attnproof::rotary_attention", mutates_args=())
def _operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    bias: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    softcap: float,
    causal_kind: int,
    window: int,
    rotary_embedding_dim: int,
    interleaved: int,
    rotate_key: int,
    has_bias: int,
    has_lengths: int,
) -> torch.Tensor:
    settings = Settings(
        scale, softcap, causal_kind, window, rotary_embedding_dim, interleaved, rotate_key, has_bias, has_lengths
    )
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "bias": bias, "lengths": lengths}
    shape = _checked(settings, tensors)
    if q.is_cuda:
        from plugins.kernels.launch import launch

        return launch(settings, tensors, shape)
    return rotary_attention_eager(q, k, v, cos, sin, bias, lengths, settings)


@_operator.register_fake
def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[1], q.shape[2], v.shape[3])


def _checked(settings: Settings, tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    kinds = {name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items()}
    wrong = {n: d for n, d in kinds.items() if n in ("k", "v", "bias") and d != kinds["q"]}
    if wrong:
        raise ValueError(f"q is {kinds['q']}, and {', '.join(f'{n} is {d}' for n, d in wrong.items())}; give one type.")
    if kinds["lengths"] != "int32":
        raise ValueError(f"lengths is {kinds['lengths']}; it is int32.")
    return output_shape(settings, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the `custom_translation_table` with which `torch.onnx.export` writes the operator as its plugin node."""
    import onnxscript

    from plugins.onnx_schema import onnx_schema

    domain = onnxscript.values.Opset(ROTARY_ATTENTION.domain, ROTARY_ATTENTION.version)
    op = onnxscript.values.Op(domain, ROTARY_ATTENTION.name, onnx_schema())
    names = [attribute.name for attribute in ROTARY_ATTENTION.attributes]
    count = len(ROTARY_ATTENTION.inputs)

    def write(*arguments: Any) -> Any:
        attributes = dict(zip(names, arguments[count:], strict=True))
        return op(*arguments[:count], **attributes)

    return {torch.ops.attnproof.rotary_attention.default: write}
