"""Launches the kernel on PyTorch's GPU tensors, compiled by Triton for the GPU at hand."""

import functools
from collections.abc import Mapping

import torch

from plugins.contract import Settings
from plugins.kernels.arguments import Problem, constants
from plugins.kernels.compile import compile_ahead
from plugins.kernels.variants import Variant

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def launch(
    settings: Settings,
    tensors: Mapping[str, torch.Tensor],
    shape: tuple[int, ...],
    variant: Variant | None = None,
    precision: str = "ieee",
) -> torch.Tensor:
    """Returns the output of the kernel.

    Args:
        settings: The operator's attributes.
        tensors: Every input by name, checked against the contract.
        shape: Of the output, [B, H, S, E].
        variant: Its tiles; None takes the first that fits this GPU.
        precision: "ieee" or "tf32" for float32.
    """
    from plugins.kernels.attention import rotary_attention as kernel

    q, k, v, bias = (tensors[name].contiguous() for name in ("q", "k", "v", "bias"))
    rest = tuple(tensors[name].contiguous() for name in ("cos", "sin", "lengths"))
    problem = Problem(settings, q.shape[1], k.shape[1], q.shape[3], v.shape[3], _DTYPES[q.dtype], precision)
    interpreted = not q.is_cuda
    if variant is None:
        variant = (
            Variant(16, 32, 4, 1) if interpreted else _fitting(problem, torch.cuda.get_device_capability(q.device))
        )
    out = torch.empty(shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    grid = (-(-shape[2] // variant.block_m), shape[0] * shape[1])
    widen = interpreted and q.dtype == torch.bfloat16
    kernel[grid](
        q,
        k,
        v,
        rest[0],
        rest[1],
        bias,
        rest[2],
        q.shape[2],
        k.shape[2],
        rest[0].shape[0],
        *bias.shape[:3],
        out,
        **constants(problem, variant, widen),
        num_warps=variant.warps,
        num_stages=variant.stages,
    )
    return out


@functools.cache
def _fitting(problem: Problem, capability: tuple[int, int]) -> Variant:
    return compile_ahead(problem, capability[0] * 10 + capability[1]).variant
