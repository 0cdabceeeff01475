"""Contenders that PyTorch runs: the module as it is, its own attention pinned to each backend, and flex_attention."""

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from export.bench.contender import TORCH, Contender, Opened, Outputs, Unavailable
from export.bench.shapes import Shape

if TYPE_CHECKING:
    import torch

BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
"""torch.nn.attention.SDPBackend by name."""
_WITHOUT_CPU_KERNEL = ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def eager(module: "torch.nn.Module", inputs: Mapping[str, Any], outputs: tuple[str, ...] = ()) -> Contender:
    """Returns the module as PyTorch runs it, operator by operator."""
    return Contender("torch eager", TORCH, lambda: opened(lambda: module(**inputs), outputs), stage="")


def sdpa(shape: Shape, inputs: "Mapping[str, torch.Tensor]") -> tuple[Contender, ...]:
    """Returns PyTorch's scaled_dot_product_attention, pinned to each of its backends; RoPE, where any, is before it."""

    def pinned(backend: str) -> Callable[[], Opened]:
        def open_() -> Opened:
            import warnings

            from torch.nn.attention import SDPBackend, sdpa_kernel

            from export.bench import cases

            if all(x.device.type == "cpu" for x in inputs.values()):
                require_cpu_kernel(backend)

            def call() -> Any:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    return cases.with_sdpa(shape, dict(inputs))

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of every backend that it then does not take
                return opened(call, ("output",))

        return open_

    return tuple(Contender(f"torch SDPA {_short(name)}", TORCH, pinned(name)) for name in BACKENDS)


def flex(shape: Shape, inputs: "Mapping[str, torch.Tensor]") -> Contender:
    """Returns compiled flex_attention, its block mask made beforehand; RoPE, where any, is compiled in."""

    def open_() -> Opened:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        from export.bench import cases

        device = inputs["query"].device
        require_compiler(device.type)
        mask = _rule(shape, inputs)
        batch = None if shape.family == "causal" else shape.batch
        block = create_block_mask(mask, batch, None, shape.queries, shape.key_count, device=str(device))

        def whole(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
            if shape.family == "causal":
                q, k = cases.rotated(shape, q, k)
            return flex_attention(q, k, v, block_mask=block, enable_gqa=shape.heads != shape.kv_heads)

        torch.compiler.reset()  # PyTorch counts every shape's as recompilations of one function
        compiled = torch.compile(whole, dynamic=False, fullgraph=True)
        # The heads are split outside: compiled in, PyTorch 2.13 raises a LoweringException on the CPU.
        return opened(lambda: cases.merge(compiled(*cases.split(shape, dict(inputs)))), ("output",))

    return Contender("torch flex_attention, compiled", TORCH, open_)


def require_cpu_kernel(backend: str) -> None:
    """Raises Unavailable where a backend of PyTorch's attention has no CPU kernel."""
    if backend in _WITHOUT_CPU_KERNEL:
        raise Unavailable(f"PyTorch has no CPU kernel for its backend {backend}.")


def require_compiler(device: str) -> None:
    """Raises Unavailable where torch.compile has no compiler for the device."""
    if device == "cpu" and shutil.which("g++") is None:
        raise Unavailable("torch.compile needs a C++ compiler on the CPU, and g++ is not on the path.")


def _rule(shape: Shape, inputs: "Mapping[str, torch.Tensor]") -> "Callable[..., torch.Tensor]":
    if shape.family == "causal":
        return lambda b, h, query, key: query >= key
    from export.bench import cases

    keep = cases.keep(shape, inputs)
    if keep is None:
        raise Unavailable(f"The family {shape.family} has no rule.")
    return lambda b, h, query, key: keep[b, key]


def opened(call: Callable[[], Any], outputs: tuple[str, ...]) -> Opened:
    """Returns a call of PyTorch without gradients as a contender that is ready.

    Raises:
        Unavailable: It raises.
    """
    import torch

    from export.parity import arrays

    def quiet() -> Any:
        with torch.no_grad():
            return call()

    def named() -> Outputs:
        found = arrays.outputs(quiet())
        return dict(zip(outputs, found.values(), strict=True)) if len(outputs) == len(found) else found

    try:
        quiet()
    except Exception as error:  # a backend that does not take these inputs raises RuntimeError, the compiler its own
        lines = str(error).strip().splitlines() or ["no message"]
        raise Unavailable(f"It does not run: {type(error).__name__}: {lines[0][:160]}") from error
    return Opened(quiet, named)


def _short(backend: str) -> str:
    return backend.removesuffix("_ATTENTION")
