"""Launches the kernels on PyTorch's GPU tensors, compiled by Triton for the GPU at hand."""

import functools
from collections.abc import Mapping

import torch

from plugins.contract import Settings
from plugins.kernels import splits as split_rule
from plugins.kernels.arguments import Problem, constants
from plugins.kernels.compile import compile_ahead, jitted
from plugins.kernels.variants import ATTENTION, COMBINE, DECODE, Variant

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_INTERPRETED = Variant(16, 32, 4, 1)
_COMBINE_WARPS = 4
_DECODE_ROWS = 16
"""Rows of a tile of the decode kernel, as the data has it."""


def launch(
    settings: Settings,
    tensors: Mapping[str, torch.Tensor],
    shape: tuple[int, ...],
    variant: Variant | None = None,
    precision: str = "ieee",
    splits: int | None = None,
) -> torch.Tensor:
    """Returns the output of the kernel.

    Args:
        settings: The operator's attributes.
        tensors: Every input by name, checked against the contract.
        shape: Of the output, [B, H, S, E].
        variant: Its tiles; None takes the first that fits this GPU.
        precision: "ieee" or "tf32" for float32.
        splits: In how many splits the decode kernel cuts the keys; 0 takes the ordinary kernel, None what
            `plugins.kernels.splits` says of the sizes and this GPU (the ordinary one in Triton's interpreter).
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    q, k, v = (tensors[name] for name in ("q", "k", "v"))
    problem = Problem(settings, q.shape[1], k.shape[1], q.shape[3], v.shape[3], _DTYPES[q.dtype], precision)
    out = torch.empty(shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    if splits is None:
        splits = _splits(problem, q, k) if q.is_cuda else 0
    variant = variant or _chosen(problem, q, DECODE if splits else ATTENTION)
    _lend(variant, q.device)
    integers = (q.shape[2], k.shape[2], tensors["cos"].shape[0], *tensors["bias"].shape[:3])
    inputs = (*(tensors[name] for name in ("q", "k", "v", "cos", "sin", "bias", "lengths")), *integers)
    if splits:
        _decode(problem, variant, inputs, out, splits)
        return out
    kernel = jitted(ATTENTION)
    values = constants(problem, variant, _widened(q), names=kernel.arg_names)
    grid = (-(-shape[2] // variant.block_m), shape[0] * shape[1])
    kernel[grid](*inputs, out, **values, num_warps=variant.warps, num_stages=variant.stages)
    return out


def _decode(problem: Problem, variant: Variant, inputs: tuple[object, ...], out: torch.Tensor, splits: int) -> None:
    """Launches the decode kernel and, where there are several splits, the one that combines them."""
    planes, rows = out.shape[0] * problem.kv_heads, problem.heads // problem.kv_heads * out.shape[2]
    split = splits > 1
    leave = functools.partial(torch.empty, dtype=torch.float32, device=out.device)
    parts, sums = (leave(planes, splits, rows, size) if split else leave(1) for size in (problem.value_size, 2))
    kernel, adding = jitted(DECODE), jitted(COMBINE)
    values = constants(problem, variant, _widened(out), split, kernel.arg_names)
    grid = (-(-rows // variant.block_m), splits, planes)
    kernel[grid](*inputs, splits, parts, sums, out, **values, num_warps=variant.warps, num_stages=variant.stages)
    if split:
        values = constants(problem, variant, names=adding.arg_names)
        adding[(rows, planes)](parts, sums, rows, splits, out, **values, num_warps=_COMBINE_WARPS)


def _widened(tensor: torch.Tensor) -> bool:
    """Says whether products must be widened: Triton's interpreter has none of bfloat16."""
    return not tensor.is_cuda and tensor.dtype == torch.bfloat16


def _splits(problem: Problem, q: torch.Tensor, k: torch.Tensor) -> int:
    share, planes = problem.heads // problem.kv_heads, q.shape[0] * problem.kv_heads
    gpu = torch.cuda.get_device_properties(q.device)
    rule = split_rule.rule(10 * gpu.major + gpu.minor)
    return split_rule.splits(q.shape[2], share, planes, k.shape[2], gpu.multi_processor_count, _DECODE_ROWS, rule)


def _chosen(problem: Problem, q: torch.Tensor, kernel: str) -> Variant:
    return _fitting(problem, torch.cuda.get_device_capability(q.device), kernel) if q.is_cuda else _INTERPRETED


@functools.cache
def _fitting(problem: Problem, capability: tuple[int, int], kernel: str) -> Variant:
    return compile_ahead(problem, capability[0] * 10 + capability[1], kernel, scratch=True).variant


def _lend(variant: Variant, device: torch.device) -> None:
    """Has Triton take the scratch memory of tensor descriptors from PyTorch."""
    if variant.descriptors and device.type == "cuda":
        import triton

        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
