"""The two ways the reference is run: exactly, and with every result moved; and what PyTorch is left like."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from export.parity.reach import reach
from export.parity.rounding import exact, rounded


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def narrowing(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.float() * 3, dim=-1, dtype=torch.float32).to(torch.float16).sum(-1, dtype=torch.float32)


def test_the_exact_run_passes_over_casts_to_narrower_types():
    x = drawn(4, 5)
    result = exact(narrowing, (x,), {}, zero=False).value
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (narrowing(x).double() - 1).abs().max() > 1e-6


def test_tables_computed_in_float32_stay_as_they_are():
    def table(x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(4, dtype=torch.float32).mul(0.1).cos()

    x = torch.ones(4, dtype=torch.float64)
    result = exact(table, (x,), {}, zero=False).value
    assert torch.equal(result, torch.arange(4, dtype=torch.float32).mul(0.1).cos().double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_moved_result_is_within_one_unit_in_the_last_place(dtype):
    x, y = drawn(2000, dtype=dtype), drawn(2000, dtype=dtype, seed=1)
    moved = rounded(torch.mul, (x, y), {}, seed=0, zero=False).value
    plain = x * y
    assert moved.dtype == dtype
    unit = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    distance = (moved.double() - plain.double()).abs() / plain.double().abs()
    assert 0.5 < (moved != plain).double().mean() < 0.95
    assert distance.max() <= 2 * unit
    assert torch.equal(moved, rounded(torch.mul, (x, y), {}, seed=0, zero=False).value)
    assert not torch.equal(moved, rounded(torch.mul, (x, y), {}, seed=1, zero=False).value)


def test_what_every_implementation_has_exactly_is_not_moved():
    def steps(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        positions = torch.arange(8, dtype=x.dtype) * 1
        fill = (1 - (x > 0).to(x.dtype)) * -10000
        return positions, fill, x.view(2, 4), torch.cat([x, x]), x > 0, -x

    x = drawn(8, dtype=torch.float16)
    for moved, plain in zip(rounded(steps, (x,), {}, seed=0, zero=False).value, steps(x), strict=True):
        assert torch.equal(moved, plain)


def test_an_operator_in_place_is_moved_in_place():
    def steps(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y.mul_(1.37)
        return y

    x = drawn(1000, dtype=torch.float16)
    assert (rounded(steps, (x,), {}, seed=0, zero=False).value != steps(x)).double().mean() > 0.3


def test_float32_products_move_by_what_their_sums_may_lose():
    x = torch.cat([torch.full((1, 500), 1e4), torch.full((1, 500), -1e4)], dim=1)  # cancels to a small number
    y = torch.ones(1000, 1) + drawn(1000, 1, dtype=torch.float32) * 1e-3
    moved = rounded(torch.mm, (x, y), {}, seed=0, zero=False).value
    assert (moved - x @ y).abs().item() > 2.0**-23 * (x @ y).abs().item() * 4


def test_tf32_moves_the_operands_of_products_only():
    x, y = drawn(50, 50, dtype=torch.float32), drawn(50, 50, dtype=torch.float32, seed=1)
    plain = rounded(torch.mm, (x, y), {}, seed=0, zero=False).value
    coarse = rounded(torch.mm, (x, y), {}, seed=0, zero=False, tf32=True).value
    exactly = x.double() @ y.double()
    assert (coarse - exactly).norm() > 100 * (plain - exactly).norm()
    assert torch.equal(
        rounded(torch.mul, (x, y), {}, seed=0, zero=False, tf32=True).value,
        rounded(torch.mul, (x, y), {}, seed=0, zero=False).value,
    )


@pytest.mark.parametrize("hand", [True, False])
def test_a_query_without_keys_is_seen_and_given_zero_weights_on_demand(hand):
    q = drawn(1, 1, 3, 4)
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    mask[..., 1, :] = -1e9

    def attend(q: torch.Tensor) -> torch.Tensor:
        if hand:
            return torch.softmax(q @ q.mT + mask, dim=-1) @ q
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    kept, zeroed = exact(attend, (q,), {}, zero=False), exact(attend, (q,), {}, zero=True)
    assert kept.dead
    assert (kept.value[..., 1, :] != 0).all()
    assert (zeroed.value[..., 1, :] == 0).all()
    assert torch.equal(kept.value[..., 0, :], zeroed.value[..., 0, :])
    mask[..., 1, 0] = 0
    assert not exact(attend, (q,), {}, zero=True).dead


def test_fused_kernels_are_taken_apart_and_settings_put_back():
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    fast = torch.backends.mha.get_fastpath_enabled()
    q = drawn(1, 2, 6, 8, dtype=torch.float16)
    q[:] = q * 3

    def attend(q: torch.Tensor) -> torch.Tensor:
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        return F.scaled_dot_product_attention(q, q, q)

    moved = [rounded(attend, (q,), {}, seed=s, zero=False).value for s in range(4)]
    truth = exact(F.scaled_dot_product_attention, (q.double(), q.double(), q.double()), {}, zero=False).value
    own = (F.scaled_dot_product_attention(q, q, q).double() - truth).abs().max()
    assert max((m.double() - truth).abs().max() for m in moved) > 1.5 * own
    with pytest.raises(ValueError, match="mine"):
        exact(_raises, (q,), {}, zero=False)
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == reduced
    assert torch.backends.mha.get_fastpath_enabled() == fast


def _raises(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("mine")


def test_multihead_attentions_fast_path_does_not_hide_a_row_without_keys():
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval().double()
    x = drawn(2, 3, 8)
    hidden = torch.zeros(2, 3, dtype=torch.bool)
    hidden[1] = True
    arguments = {"key_padding_mask": hidden, "need_weights": False}
    assert exact(module, (x, x, x), arguments, zero=False).dead


def test_the_reach_is_each_rows_largest_error_and_at_least_the_medians():
    center = np.zeros((3, 2))
    runs = [np.array([[1.0, 0], [4, 0], [0, 0]]), np.array([[0, -2.0], [0, 0], [0, 0.5]])]
    far, norm = reach(center, runs, None, None)
    assert far.tolist() == [[2, 2], [4, 4], [2, 2]]
    assert norm == 17**0.5


def test_the_reach_at_rows_without_keys_is_the_distance_from_what_pytorch_gives():
    center = np.array([[1.0, 1.0], [9.0, 9.0]])
    other = np.array([[1.0, 1.0], [5.0, 5.0]])
    runs = [np.array([[1.5, 1.0], [5.25, 5.0]])]
    dead = np.array([[False, False], [True, True]])
    far, norm = reach(center, runs, dead, other)
    assert far.tolist() == [[0.5, 0.5], [0.25, 0.25]]
    assert norm == 0.5


def test_the_reach_ignores_what_is_not_finite():
    far, norm = reach(np.array([np.nan, 1.0]), [np.array([np.nan, np.inf])], None, None)
    assert far.tolist() == [0, 0]
    assert norm == 0
