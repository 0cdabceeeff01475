"""Precisions and the derived bound of one attention: numpy knows the spacings, PyTorch is a right implementation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from export.errors import UsageError
from export.parity.attention import attention_truth
from export.parity.budgets import graph_budget, graph_budget_norm, roundings
from export.parity.precision import PRECISIONS, precision

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def drawn(seed: int, dtype: torch.dtype, *, queries: int = 9, keys: int = 13, heads: int = 4, magnitude: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 4, queries, 16), (2, heads, keys, 16), (2, heads, keys, 16))
    q, k, v = (torch.randn(*s, generator=generator) for s in shapes)
    return (q * magnitude).to(dtype), (k * magnitude).to(dtype), v.to(dtype)


def as_float64(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.double().numpy() for t in tensors]


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_the_spacing_is_numpys(name):
    row = precision(name)
    kind = row.dtype().type
    largest = float(np.finfo(kind).max)
    values = np.array([0.0, 1.0, 1.5, 0.75, -3.0, 1000.0, float(kind(1e-5)), float(np.finfo(kind).tiny), largest])
    expected = [float(np.spacing(kind(abs(v)))) for v in values[:-1]]
    assert row.ulp(values)[:-1].tolist() == expected
    assert row.largest == largest
    assert row.smallest == float(np.finfo(kind).smallest_subnormal)
    assert row.u == float(np.finfo(kind).eps) / 2


def test_bfloat16_and_tf32_round_like_their_significands():
    assert float(torch.tensor(1 + precision("bf16").u * 0.99).bfloat16()) == 1.0
    assert float(torch.tensor(1 + precision("bf16").u * 1.01).bfloat16()) > 1.0
    assert precision("bf16").largest == torch.finfo(torch.bfloat16).max
    assert precision("tf32").u == precision("fp16").u
    assert precision("tf32").storage == "float32"


def test_an_unknown_dtype_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'fp8'.*fp32, fp16, bf16"):
        precision("fp8")


@pytest.mark.parametrize("masked", ["none", "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_float64_attention_is_pytorchs(masked, causal):
    q, k, v = drawn(0, torch.float64, queries=9, keys=9)
    keep = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    keep[..., 0] = True
    bias = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = {"none": None, "bool": keep, "float": bias}[masked]
    allowed = torch.ones(9, 9, dtype=torch.bool).tril() if causal else torch.ones(9, 9, dtype=torch.bool)
    total = torch.zeros(2, 1, 9, 9, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    if masked == "bool":
        total = total.masked_fill(~keep, float("-inf"))
    elif masked == "float":
        total = total + bias
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=total).numpy()
    arrays = [x.numpy() for x in (q, k, v)]
    truth = attention_truth(*arrays, mask=None if mask is None else mask.numpy(), causal=causal)
    np.testing.assert_allclose(truth.output, expected, rtol=1e-12, atol=1e-12)
    assert not truth.dead.any()


def test_grouped_heads_softcap_and_scale_follow_their_formulas():
    q, k, v = drawn(3, torch.float64, heads=2)
    truth = attention_truth(q.numpy(), k.numpy(), v.numpy(), scale=0.5, softcap=2.0)
    wide_k, wide_v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    weights = torch.softmax(2 * torch.tanh(0.5 * q @ wide_k.mT / 2), dim=-1)
    np.testing.assert_allclose(truth.output, (weights @ wide_v).numpy(), rtol=1e-12)
    assert truth.peak.max() <= 2.0


def test_a_row_without_keys_is_zero_and_marked():
    q, k, v = (x.numpy() for x in drawn(4, torch.float64))
    mask = np.ones((2, 1, 9, 13), dtype=bool)
    mask[1, 0, 2] = False
    truth = attention_truth(q, k, v, mask=mask)
    assert truth.dead[1, :, 2].all()
    assert truth.dead.sum() == 4
    assert (truth.output[1, :, 2] == 0).all()


def test_a_mask_fill_does_not_widen_the_budget():
    q, k, v = (x.numpy() for x in drawn(5, torch.float64))
    fill = np.zeros((1, 1, 9, 13))
    fill[..., 5:] = -1e4
    plain, filled = attention_truth(q, k[:, :, :5], v[:, :, :5]), attention_truth(q, k, v, mask=fill)
    np.testing.assert_allclose(plain.peak, filled.peak)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("magnitude", [0.01, 1.0, 6.0])
def test_right_attentions_are_within_their_bound(dtype, magnitude):
    worst = [0.0, 0.0]
    for seed in range(6):
        q, k, v = drawn(seed, TORCH[dtype], keys=(1, 13, 300)[seed % 3], magnitude=magnitude)
        truth = attention_truth(*as_float64(q, k, v))
        whole = F.scaled_dot_product_attention(q, k, v)
        steps = torch.softmax(q @ k.mT * 0.25, dim=-1) @ v
        for output, fused in ((whole, True), (steps, False)):
            ratios = truth.ratio(output.double().numpy(), dtype, fused=fused)
            worst = [max(a, b) for a, b in zip(worst, ratios, strict=True)]
    assert max(worst) <= 0.8, worst


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_slightly_wrong_scale_is_outside_the_bound(dtype):
    wrong = {"fp32": 1e-4, "fp16": 0.1, "bf16": 0.5}[dtype]
    q, k, v = drawn(7, TORCH[dtype], keys=64, magnitude=1.5)
    truth = attention_truth(*as_float64(q, k, v))
    right = F.scaled_dot_product_attention(q, k, v, scale=0.25)
    off = F.scaled_dot_product_attention(q, k, v, scale=0.25 * (1 + wrong))
    assert max(truth.ratio(right.double().numpy(), dtype, fused=True)) <= 1
    assert max(truth.ratio(off.double().numpy(), dtype, fused=True)) > 1


def test_a_flat_tolerance_would_be_wrong_both_ways():
    q, k, v = drawn(8, torch.bfloat16, magnitude=4.0)
    right = (torch.softmax(q @ k.mT * 0.25, dim=-1) @ v).double().numpy()
    truth = attention_truth(*as_float64(q, k, v))
    assert np.abs(right - truth.output).max() > 1e-2
    assert max(truth.ratio(right, "bf16", fused=False)) <= 1
    q, k, v = drawn(8, torch.float32)
    truth = attention_truth(*as_float64(q, k, v))
    broken = truth.output + 1e-4
    assert max(truth.ratio(broken, "fp32", fused=True)) > 1


def test_nan_is_outside_every_bound():
    q, k, v = drawn(9, torch.float32)
    truth = attention_truth(*as_float64(q, k, v))
    broken = truth.output.copy()
    broken[0, 0, 0, 0] = np.nan
    assert truth.ratio(broken, "fp32", fused=True) == (np.inf, np.inf)


def test_saturated_scores_never_allow_more_than_the_values_themselves():
    q, k, v = drawn(10, torch.float16, magnitude=60.0)
    truth = attention_truth(*as_float64(q, k, v))
    assert (truth.elementwise("fp16", fused=False) <= 2 * np.abs(v.double().numpy()).max() + 1e-6).all()


def test_shapes_that_are_no_attention_are_refused():
    q, k, v = (x.numpy() for x in drawn(11, torch.float64))
    with pytest.raises(UsageError, match="multiple of Hkv"):
        attention_truth(q, k[:, :3], v[:, :3])
    with pytest.raises(UsageError, match="got"):
        attention_truth(q, k, v).ratio(np.zeros(3), "fp32", fused=True)


def test_float32_has_nowhere_wider_to_keep_scores():
    assert roundings("fp32", fused=True) == roundings("fp32", fused=False)
    assert roundings("fp16", fused=True) < roundings("fp16", fused=False)


def test_a_graphs_budget_is_twice_the_reach_and_four_ulp():
    row = PRECISIONS["fp16"]
    budget = graph_budget(np.array([1.0, 0.0, np.nan]), np.array([0.5, 0.0, 0.0]), row)
    assert budget.tolist() == [1.0 + 4 * 2.0**-10, 4 * 2.0**-24, 4 * 2.0**-24]
    assert graph_budget_norm(np.array([3.0, 4.0]), 1.0, row) == pytest.approx(2 + 5 * 2.0**-11 + 2**0.5 * 2.0**-24)
