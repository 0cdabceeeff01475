"""The kernel compiles ahead of time for each architecture: no spills or scratch, vector loads, tensor-core products."""

import re

import pytest

from plugins.contract import Settings
from plugins.kernels.arguments import Problem
from plugins.kernels.compile import Compiled, KernelError, compile_ahead
from plugins.kernels.variants import SHARED_MEMORY, variants

pytest.importorskip("triton", reason="NOT RUN: Triton is not installed")

PLAIN = Settings(0.125, causal_kind=1)
ROPE = Settings(0.125, causal_kind=1, rotary_embedding_dim=64)
FULL = Settings(0.125, 30.0, 2, 64, 64, 0, 1, 1, 1)
PRODUCT = {80: r"mma\.sync", 89: r"mma\.sync", 90: r"wgmma\.mma_async", 120: r"mma\.sync"}


def problem(settings: Settings, size: int, dtype: str, precision: str = "ieee") -> Problem:
    return Problem(settings, 16, 4, size, size, dtype, precision)


@pytest.mark.parametrize("sm", PRODUCT)
@pytest.mark.parametrize(
    ("settings", "size", "dtype"),
    [(PLAIN, 64, "fp16"), (ROPE, 128, "bf16"), (FULL, 64, "bf16")],
    ids=["plain-64", "rope-128", "full-64"],
)
def test_it_fits_and_uses_the_tensor_cores(sm: int, settings: Settings, size: int, dtype: str) -> None:
    made = compile_ahead(problem(settings, size, dtype), sm)
    assert re.search(rf"^\.target sm_{sm}", made.ptx, re.MULTILINE)
    assert (made.spilled, made.scratch) == (0, 0)
    assert 64 < made.registers <= 255
    assert 0 < made.shared <= SHARED_MEMORY[sm] * 1024
    assert re.search(PRODUCT[sm], made.ptx)
    assert re.search(r"cp\.async\.cg\.shared\.global|ld\.global(\.\w+)*\.v4|cp\.async\.bulk", made.ptx)
    assert f".entry {made.name}(" in made.ptx


def test_float32_is_tf32_only_where_it_is_asked() -> None:
    tf32 = compile_ahead(problem(PLAIN, 64, "fp32", "tf32"), 80)
    ieee = compile_ahead(problem(PLAIN, 16, "fp32", "ieee"), 80)
    assert re.search(r"mma\.sync\S*tf32", tf32.ptx)
    assert not re.search(r"mma\.sync", ieee.ptx)


@pytest.mark.parametrize("size", [16, 24, 40, 72, 80, 100, 256])
def test_every_head_size_fits_the_smallest_machine(size: int) -> None:
    made = compile_ahead(problem(PLAIN, size, "fp16"), 89)
    assert (made.spilled, made.scratch) == (0, 0)


def test_the_launch_covers_every_row() -> None:
    tile = variants(64, "fp16")[0]
    made = Compiled("k", "", 90, tile, 0, 0, 0, 0)
    assert made.grid(tile.block_m, 7) == (1, 7, 1)
    assert made.grid(tile.block_m + 1, 7) == (2, 7, 1)
    assert made.threads == 32 * tile.warps


def test_an_architecture_nobody_knows_is_refused() -> None:
    with pytest.raises(KernelError, match="SM 70 is not one the kernel is made for"):
        compile_ahead(problem(PLAIN, 64, "fp16"), 70)
