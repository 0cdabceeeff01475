"""Runs a PyTorch callable as the reference sees it: exactly in float64, or with every result rounded once more.

Both are one dispatch mode, so that both meet the same operators: `F.scaled_dot_product_attention` is taken apart
(PyTorch's fused kernels would hide the softmax), and `nn.MultiheadAttention`'s fast path is off.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

MASKED_SCORE = -9000.0
"""A row whose largest score is no higher sees no key: -inf, -1e9, finfo.min and BERT's -1e4 plus a score lie below."""

_UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
_SOFTMAX = frozenset({"aten::_softmax", "aten::_safe_softmax"})
_PRODUCTS = frozenset({"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::convolution"})
# Operators that move, choose or compare numbers. Views are recognised by their schema.
_EXACT = frozenset(
    f"aten::{name}"
    for name in """
    _to_copy _unsafe_view abs amax amin arange argmax argmin bernoulli cat ceil clamp clamp_max clamp_min clone
    constant_pad_nd copy copy_ embedding empty empty_like eye fill fill_ flip floor full full_like gather index
    index_put index_put_ index_select lift_fresh masked_fill masked_fill_ max maximum max_pool2d_with_indices min
    minimum neg nan_to_num ones ones_like pixel_shuffle relu repeat roll round scalar_tensor scatter sign
    slice_scatter sort stack topk tril triu trunc where zero_ zeros zeros_like
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Outcome:
    """What a run returned.

    Attributes:
        value: The callable's result, whatever its structure.
        dead: Whether some softmax met a row that sees no key.
    """

    value: Any
    dead: bool


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator once it is down to ATen."""

    def __init__(self, *, noise: torch.Generator | None, tf32: bool, zero: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noise, self._tf32, self._zero = noise, tf32, zero
        self.dead = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._noise is None:
            if _narrows(func, args, kwargs):
                kwargs["dtype"] = torch.float64
        elif self._tf32 and func._schema.name in _PRODUCTS:
            args = tuple(shaken(a, self._noise, 2.0**-11) if isinstance(a, torch.Tensor) else a for a in args)
        result = func(*args, **kwargs)
        if self._noise is not None and computes(func):
            noise, load = self._noise, _load(func, args)
            result = _map(result, lambda x: shaken(x, noise, load=load), in_place=func._schema.is_mutable)
        if func._schema.name in _SOFTMAX and result.numel():
            hidden = args[0].amax(args[1], keepdim=True) <= MASKED_SCORE
            if hidden.any():
                self.dead = True
                result = result.masked_fill(hidden, 0.0) if self._zero else result
        return result


def exact(target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, zero: bool) -> Outcome:
    """Returns the result of float64 inputs in float64: casts to a narrower type inside the target are passed over.

    Args:
        target: A module in float64, or a function.
        args: Its positional arguments, floating-point tensors in float64.
        kwargs: Its named arguments, likewise.
        zero: Whether a query that sees no key gets weights 0 rather than what the target's own arithmetic gives.
    """
    return _run(target, args, kwargs, _Mode(noise=None, tf32=False, zero=zero))


def rounded(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    seed: int,
    zero: bool,
    tf32: bool = False,
) -> Outcome:
    """Returns the result at the target's own dtype, each operator's result moved by up to one unit in the last place.

    What comes out differs from the exact result as much as that of any implementation that takes the same steps and
    rounds each faithfully, not only PyTorch's. Tensors of float64 or integers are left alone, and so are small whole
    numbers (positions, 0 and 1 of masks) and mask fills, which every implementation represents exactly.

    Args:
        target: A module at the dtype under test, or a function.
        args: Its positional arguments at that dtype.
        kwargs: Its named arguments, likewise.
        seed: Seed of the moves.
        zero: As in `exact`.
        tf32: Whether the operands of matrix products are moved as TF32 would round them.
    """
    noise = torch.Generator().manual_seed(seed)
    return _run(target, args, kwargs, _Mode(noise=noise, tf32=tf32, zero=zero))


def _run(target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: _Mode) -> Outcome:
    with torch.no_grad(), taken_apart(), mode:
        value = target(*args, **kwargs)
    return Outcome(value, mode.dead)


@contextmanager
def taken_apart() -> Iterator[None]:
    """Makes PyTorch compute attention step by step at the tensors' own dtype; puts its settings back."""
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # Without this the step-by-step kernel widens half precision to float32; its name says CUDA, it holds on CPU.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
        torch.backends.mha.set_fastpath_enabled(fast)


def _narrows(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Says whether an operator takes float64 and is asked for a narrower floating-point result."""
    asked = kwargs.get("dtype")
    if asked is None or not asked.is_floating_point or func._schema.name.endswith("_like"):
        return False
    return any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args)


def computes(func: Any) -> bool:
    """Says whether an operator makes new numbers rather than moving, choosing or comparing them."""
    schema = func._schema
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return not views and schema.name not in _EXACT


def _map(result: Any, change: Callable[[torch.Tensor], torch.Tensor], *, in_place: bool) -> Any:
    if isinstance(result, torch.Tensor):
        return result.copy_(change(result)) if in_place else change(result)
    if isinstance(result, tuple | list):
        return type(result)(_map(x, change, in_place=in_place) for x in result)
    return result


def _load(func: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
    """Returns |a||b| of a float32 matrix product, in units of which its sums are rounded; None for other operators.

    Half precision accumulates in float32, where this is nothing beside rounding the result.
    """
    if func._schema.name not in _PRODUCTS or args[0].dtype != torch.float32:
        return None
    result: torch.Tensor = func(*(a.abs() if isinstance(a, torch.Tensor) else a for a in args))
    return result


def shaken(
    x: torch.Tensor,
    noise: torch.Generator,
    u: float | None = None,
    load: torch.Tensor | None = None,
    like: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns x moved by at most one unit in the last place (of `like`), or by u * load where that is more."""
    kind = like or x.dtype
    u = _UNIT_ROUNDOFF.get(kind) if u is None else u
    if u is None or kind not in _SMALLEST or not x.numel():
        return x
    wide = x.double()
    # A whole number this small is exact by design far more often than by chance.
    whole = (wide == wide.round()) & (wide.abs() <= u**-0.5)
    far = torch.clamp(2 * u * wide.abs(), min=_SMALLEST[kind])
    far = far if load is None else torch.maximum(far, u * load.double())
    step = torch.rand(x.shape, generator=noise, dtype=torch.float64) * 2 - 1
    return torch.where(whole | (wide <= MASKED_SCORE) | ~wide.isfinite(), x, (wide + step * far).to(x.dtype))
