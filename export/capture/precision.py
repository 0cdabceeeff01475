"""The dtype of a module: converted as a copy, RoPE angles left in fp32, and the float64 twin it is judged by.

An inverse frequency rounded to half precision is multiplied by the position, so at position 512 the cosine is off by
0.2 in fp16 and by 1.56 in bf16. A table of cosines rounded once is off by one rounding and is converted like a weight;
modules that protect their own tables (by overriding `_apply`) are left to do so.
"""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter

from export.capture import tree
from export.errors import UsageError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The dtypes of an export, by the names that flags and reports use."""

_ANGLES = re.compile(r"inv_?freq|(^|_)freqs?(_|$)|(^|_)thetas?($|_)|freqs_cis|timescale", re.IGNORECASE)


def to_dtype(module: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """Returns a copy of a module in a dtype, gradients off, eval mode kept; the module itself is left alone.

    Floating-point parameters and buffers are converted. Buffers of RoPE angles (`inv_freq`, `freqs` and the like) stay
    in fp32, complex ones as they are.

    Args:
        module: Any module on the CPU.
        dtype: "fp32", "fp16" or "bf16".

    Raises:
        UsageError: The dtype is unknown, the module cannot be copied, or a weight does not fit the dtype's range.
    """
    if dtype not in DTYPES:
        raise UsageError(f"There is no dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    copied = _converted(_copy(module), DTYPES[dtype])
    _refuse_overflow(module, copied, dtype)
    return copied


def reference(module: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """Returns the float64 twin of `to_dtype(module, dtype)`: weights rounded to the dtype first, then widened.

    Both so compute with the same numbers, and what is left is the error of computing. RoPE angles keep their fp32
    values.

    Raises:
        UsageError: As `to_dtype`.
    """
    return _converted(to_dtype(module, dtype), torch.float64)


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Returns inputs with every floating-point tensor in `dtype`, nothing sharing memory with the originals."""

    def change(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(dtype, copy=True) if leaf.is_floating_point() else leaf.clone()

    return tree.rebuild(inputs, change)


def refuse_non_finite(module: torch.nn.Module) -> None:
    """Returns if every weight is a finite number; an additive mask among the buffers may hold -inf.

    Raises:
        UsageError: A parameter holds NaN or infinity, or a buffer holds NaN; the message names it.
    """
    for name, weight in module.named_parameters():
        if isinstance(weight, UninitializedParameter):
            raise UsageError(
                f"The parameter `{name}` has no value yet: it belongs to a lazy module. Call the module once on the "
                "inputs before the factory returns it."
            )
        if weight.is_meta:
            raise UsageError(f"The parameter `{name}` has no data (it is on the meta device). Load the weights first.")
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            kind, count = _bad(weight)
            raise UsageError(
                f"The parameter `{name}` holds {count} {kind} of {weight.numel()} values: no output can be judged. "
                "Load good weights, or find where training diverged."
            )
    for name, table in module.named_buffers():
        if table.is_floating_point() and not table.is_meta and bool(torch.isnan(table).any()):
            raise UsageError(f"The buffer `{name}` holds NaN: no output can be judged. Initialise it.")


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # __deepcopy__ and __reduce_ex__ of any module, which may raise anything
        raise UsageError(
            f"{type(module).__name__} cannot be copied, which converting it to another dtype needs: {error}. Weights "
            "computed from others (old-style weight_norm, spectral_norm) must be removed or folded in first."
        ) from error
    return copied.requires_grad_(False)


def _converted(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    angles = {
        (owner, name): table
        for owner in module.modules()
        for name, table in owner._buffers.items()
        if table is not None and table.is_floating_point() and _ANGLES.search(name)
    }

    def convert(t: torch.Tensor) -> torch.Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    # `_apply` and not `to`: it is what half() and double() go through, and `to` would cut complex tensors in two.
    apply: Callable[..., Any] = module._apply
    apply(convert)
    for (owner, name), table in angles.items():
        owner._buffers[name] = table.to(torch.float32)
    return module


def _refuse_overflow(before: torch.nn.Module, after: torch.nn.Module, dtype: str) -> None:
    if dtype != "fp16":  # bf16 has fp32's range
        return
    originals = dict(before.named_parameters())
    for name, weight in after.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            largest = float(originals[name].detach().abs().max())
            if largest < float("inf"):
                raise UsageError(
                    f"The parameter `{name}` reaches {largest:.6g}, beyond fp16's largest number 65504. "
                    "Export in bf16 or fp32 (--dtype), or rescale the weight."
                )


def _bad(weight: torch.Tensor) -> tuple[str, int]:
    nan = int(torch.isnan(weight).sum())
    return ("NaN", nan) if nan else ("infinite", int(torch.isinf(weight).sum()))
