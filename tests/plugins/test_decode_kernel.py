"""The kernel for few queries and many keys: what float64 loops give in any number of splits; what it compiles to."""

import re

import pytest
import torch
from problems import DECODE_CALLS, Call
from test_kernel_numbers import BUDGET, DTYPES, assert_close, outputs

from plugins.contract import Settings
from plugins.kernels.arguments import Problem
from plugins.kernels.compile import compile_ahead, compile_variant
from plugins.kernels.splits import SplitRule, rule, splits
from plugins.kernels.variants import COMBINE, DECODE, SHARED_MEMORY, variants

pytest.importorskip("triton", reason="NOT RUN: Triton is not installed")

RULE = rule()
PLAIN = Settings(0.125, causal_kind=2, has_lengths=1)
ROPE = Settings(0.125, causal_kind=2, rotary_embedding_dim=128, has_lengths=1)
FULL = Settings(0.125, 30.0, 2, 64, 64, 0, 1, 1, 1)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return outputs(tmp_path_factory.mktemp("decode"), "decode")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", DECODE_CALLS, ids=lambda call: call.name)
def test_any_number_of_splits_gives_what_loops_give(
    call: Call, dtype: str, interpreted: dict[str, torch.Tensor]
) -> None:
    assert_close(interpreted[f"{call.name} {dtype}"], call, call.tensors(DTYPES[dtype]), dtype, BUDGET[dtype])


def test_rows_that_see_no_key_are_zero(interpreted: dict[str, torch.Tensor]) -> None:
    for dtype in DTYPES:
        out = interpreted[f"lengths-and-none {dtype}"]
        assert not out[0].any() and out[1].any()
        early = interpreted[f"fewer-keys-than-queries {dtype}"]
        assert not early[0, :, :2].any() and early[0, :, 2:].any() and early[1].all()


@pytest.mark.parametrize("sm", (80, 89, 90, 120))
@pytest.mark.parametrize(
    ("settings", "size", "dtype"),
    [(PLAIN, 64, "fp16"), (ROPE, 128, "bf16"), (FULL, 64, "bf16")],
    ids=["plain-64", "rope-128", "full-64"],
)
def test_it_fits_and_keeps_loads_under_way(sm: int, settings: Settings, size: int, dtype: str) -> None:
    problem = Problem(settings, 32, 8, size, size, dtype)
    made = compile_ahead(problem, sm, DECODE)
    assert (made.spilled, made.scratch) == (0, 0)
    assert 0 < made.shared <= SHARED_MEMORY[sm] * 1024
    assert f".entry {made.name}(" in made.ptx and made.name == "split_attention"
    assert re.search(r"mma\.sync", made.ptx)
    assert re.search(r"cp\.async\.cg\.shared\.global", made.ptx) and "cp.async.wait_group" in made.ptx
    adding = compile_variant(problem, made.variant, sm, COMBINE)
    assert (adding.spilled, adding.scratch, adding.name) == (0, 0, "combine")
    assert re.search(r"ld\.global(\.\w+)*\.v4", adding.ptx)


@pytest.mark.parametrize(("size", "dtype"), [(16, "fp16"), (40, "fp16"), (256, "fp16"), (256, "fp32")])
def test_every_head_size_fits_the_smallest_machine(size: int, dtype: str) -> None:
    made = compile_ahead(Problem(PLAIN, 8, 2, size, size, dtype), 89, DECODE)
    assert (made.spilled, made.scratch) == (0, 0)
    assert made.variant in variants(max(16, 1 << (size - 1).bit_length()), dtype, DECODE)


@pytest.mark.parametrize(
    ("batch", "keys", "expected"), [(1, 2048, 8), (1, 65536, 33), (8, 8192, 5), (32, 32768, 2), (300, 4096, 1)]
)
def test_splits_fill_a_gpu_and_are_not_too_short(batch: int, keys: int, expected: int) -> None:
    assert splits(1, 4, 8 * batch, keys, 132, 16, RULE) == expected


def test_the_ordinary_kernel_keeps_what_fills_its_tiles() -> None:
    assert splits(512, 4, 8, 65536, 132, 16, RULE) == 0  # a prompt
    assert splits(1, 4, 8, RULE.least_keys - 1, 132, 16, RULE) == 0  # a short cache
    assert splits(RULE.most_rows + 1, 1, 8, 65536, 132, 16, RULE) == 0
    assert splits(RULE.most_rows, 1, 8, 65536, 132, 16, RULE) > 1
    assert splits(1, 4, 1, 10**6, 10**6, 16, SplitRule(64, 1, 1, 40, 2)) == 40
