"""The plugin's Triton kernel on a GPU: against float64 loops, as PyTorch's operator, and as PTX for the driver."""

import ctypes
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_machine import Machine

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from problems import CALLS, DECODE_CALLS, SPLITS, Call
from test_kernel_numbers import BUDGET, DTYPES, assert_close, by_hand

from plugins.contract import Settings, output_shape
from plugins.kernels.arguments import Problem
from plugins.kernels.compile import Compiled, compile_ahead
from plugins.kernels.variants import Variant

pytestmark = pytest.mark.gpu
pytest.importorskip("triton", reason="NOT RUN: Triton is not installed")

TF32 = 2.0**-10
"""What a number loses at most that is cut to TF32."""


def computed(call: Call, dtype: str, machine: Machine, precision: str = "ieee", splits: int | None = 0):
    """Returns (output, inputs), both in host memory, of the kernel on the machine; `splits` as `launch` takes them."""
    from plugins.kernels.launch import launch

    tensors = call.tensors(DTYPES[dtype])
    shape = output_shape(call.settings, {name: tuple(t.shape) for name, t in tensors.items()})
    there = {name: t.to(machine.device) for name, t in tensors.items()}
    return launch(call.settings, there, shape, precision=precision, splits=splits).cpu(), tensors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_the_kernel_gives_what_loops_give(call: Call, dtype: str, machine: Machine) -> None:
    found, tensors = computed(call, dtype, machine)
    assert_close(found, call, tensors, dtype, BUDGET[dtype])


@pytest.mark.parametrize("splits", SPLITS.values())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", DECODE_CALLS, ids=lambda call: call.name)
def test_the_decode_kernel_gives_what_loops_give(call: Call, dtype: str, splits: int, machine: Machine) -> None:
    found, tensors = computed(call, dtype, machine, splits=splits)
    assert_close(found, call, tensors, dtype, BUDGET[dtype])


def test_a_long_cache_takes_the_decode_kernel_by_itself(machine: Machine) -> None:
    call = Call("long", 1, 8, 2, queries=1, keys=4096, size=64, more={"causal_kind": 2})
    found, tensors = computed(call, "fp16", machine, splits=None)
    assert_close(found, call, tensors, "fp16", BUDGET["fp16"])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_tf32_is_within_its_own_precision(call: Call, machine: Machine) -> None:
    found, tensors = computed(call, "fp32", machine, "tf32")
    expected, size, _ = by_hand(call, tensors)
    q, k = (tensors[name].double().abs() for name in ("q", "k"))
    # Of these a score is a sum.
    terms = q @ k.repeat_interleave(call.heads // call.kv_heads, 1).mT * call.settings.scale
    loud = float(terms.max()) * (2 if call.settings.rotary_embedding_dim else 1)
    # Both operands of both products are cut: scores err by 2 TF32 of their terms, weights and V by TF32 each.
    budget = size * math.expm1(2 * TF32 * (loud + 1)) + 2**-24
    assert (abs(found.double().numpy() - expected) <= budget).all()


def test_rows_that_see_no_key_are_zero(machine: Machine) -> None:
    out, _ = computed(next(call for call in CALLS if call.name == "lengths-and-none"), "fp16", machine)
    assert not out[0].any() and out[1].any() and math.isfinite(float(out.float().sum()))


@pytest.mark.parametrize("call", CALLS[::7], ids=lambda call: call.name)
def test_pytorchs_operator(call: Call, machine: Machine) -> None:
    tensors = {name: t.to(machine.device) for name, t in call.tensors(torch.float32).items()}
    import plugins.torch_operator  # noqa: F401 (registers it)

    operator = torch.ops.attnproof.rotary_attention.default
    arguments = (*tensors.values(), *call.settings.as_attributes().values())
    torch.library.opcheck(operator, arguments)
    assert_close(operator(*arguments).cpu(), call, call.tensors(torch.float32), "fp32", 10.0)


@pytest.mark.parametrize("dtype", ("fp16", "bf16", "fp32"))
@pytest.mark.parametrize("size", (16, 64, 128, 256))
def test_the_driver_loads_what_is_compiled_ahead_of_time(size: int, dtype: str, machine: Machine) -> None:
    settings = Settings(0.125, causal_kind=1, rotary_embedding_dim=size, rotate_key=1)
    problem = Problem(settings, 8, 2, size, size, dtype)
    if not machine.real:  # Triton's interpreter is on, which compiles nothing
        load(Compiled("kernel", "PTX", machine.sm, Variant(64, 64, 4, 2), 49152, 64, 0, 0), Driver())
        return
    torch.zeros(1, device="cuda")  # makes the context
    load(compile_ahead(problem, machine.sm), ctypes.CDLL("libcuda.so.1"))


def load(made: Compiled, driver: Any) -> None:
    """Loads a kernel as whoever launches it does, and asks for its shared memory."""
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), made.ptx.encode()) == 0
    try:
        assert driver.cuModuleGetFunction(ctypes.byref(kernel), module, made.name.encode()) == 0
        largest_dynamic_shared = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        assert driver.cuFuncSetAttribute(kernel, largest_dynamic_shared, made.shared) == 0
    finally:
        driver.cuModuleUnload(module)


class Driver:
    """Takes the calls of `load` in the CUDA driver's place."""

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        return 0 if image == b"PTX" else 218

    def cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, name: bytes) -> int:
        return 0 if name == b"kernel" else 500

    def cuFuncSetAttribute(self, function: ctypes.c_void_p, attribute: int, value: int) -> int:
        return 0 if (attribute, value) == (8, 49152) else 1

    def cuModuleUnload(self, module: ctypes.c_void_p) -> int:
        return 0
