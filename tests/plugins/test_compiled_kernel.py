"""The kernel compiles ahead of time for each architecture: no spills or scratch, vector loads, tensor-core products."""

import re

import pytest

from plugins.contract import Settings
from plugins.kernels.arguments import Problem
from plugins.kernels.compile import Compiled, KernelError, compile_ahead, compile_variant, misfit, unsuited
from plugins.kernels.variants import SHARED_MEMORY, Variant, variants

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


@pytest.mark.parametrize("sm", (90, 120))
def test_descriptors_load_by_tma_and_are_not_for_a_plugin(sm: int) -> None:
    asked = problem(PLAIN, 128, "bf16")
    tile = Variant(128, 64, 8, 2, peeled=True, descriptors=True)
    made = compile_variant(asked, tile, sm)
    assert "cp.async.bulk.tensor" in made.ptx and "cp.async.cg" not in made.ptx
    assert re.search(PRODUCT[sm], made.ptx) and made.spilled == 0
    assert made.scratch > 0 and "global scratch memory" in misfit(made) and not misfit(made, scratch=True)
    assert "nobody gives it" in unsuited(asked, tile, scratch=False) and not unsuited(asked, tile, scratch=True)
    assert "multiple of 16 bytes" in unsuited(problem(PLAIN, 20, "bf16"), tile, scratch=True)


@pytest.mark.parametrize("sm", (89, 90))
def test_a_loop_without_masks_comes_before_the_one_with(sm: int) -> None:
    whole, parts = (
        compile_variant(problem(PLAIN, 64, "fp16"), Variant(64, 64, 4, 2, peeled=p), sm) for p in (False, True)
    )
    assert len(re.findall(PRODUCT[sm], parts.ptx)) == 2 * len(re.findall(PRODUCT[sm], whole.ptx))
    assert (parts.spilled, parts.scratch) == (0, 0)


def test_warps_are_specialised_where_the_compiler_does() -> None:
    tile = Variant(128, 64, 8, 2, descriptors=True, specialized=True)
    assert "setmaxnreg" in compile_variant(problem(PLAIN, 128, "bf16"), tile, 120).ptx


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
