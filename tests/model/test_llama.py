import copy

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports
from softmax_inputs import SoftmaxInputs

from engines.errors import UsageError
from export.model import draw, rope
from export.model.llama import FORMS, Attention, SelfAttention, repeat_kv

WIDTH, HEADS, KV_HEADS, SIZE = 32, 4, 2, 8


def built(kind=SelfAttention, kv_heads=KV_HEADS, **options):
    return draw.seeded(lambda: kind(WIDTH, HEADS, kv_heads, 16, **options))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(module, x, mask, empty):
    """Query head h on key/value head h // (H / Hkv), every position turned by its angles."""
    batch, length = x.shape[:2]
    x, kv_heads = plain.f64(x), module.n_kv_heads
    q = plain.rotated(plain.split_heads(plain.linear(module.wq, x), HEADS), "interleaved")
    k = plain.rotated(plain.split_heads(plain.linear(module.wk, x), kv_heads), "interleaved")
    v = plain.split_heads(plain.linear(module.wv, x), kv_heads)
    keep = mask.numpy()[:, None, None, :] & np.tril(np.ones((length, length), bool))
    context = np.empty((batch, HEADS, length, SIZE))
    for h in range(HEADS):
        shared = slice(h * kv_heads // HEADS, h * kv_heads // HEADS + 1)
        context[:, h : h + 1] = plain.attend(q[:, h : h + 1], k[:, shared], v[:, shared], keep, empty=empty)
    return plain.linear(module.wo, plain.merge_heads(context))


def padding(kind, batch=3, length=7):
    return draw.keep_mask(kind, batch, length, torch.Generator().manual_seed(3))


def test_parameters_and_buffers_are_named_as_upstream_names_them():
    weights = {"wq.weight", "wk.weight", "wv.weight", "wo.weight"}
    assert set(built().state_dict()) == set(built(Attention).state_dict()) == weights
    assert set(built(flash=False).state_dict()) == weights | {"mask"}
    assert built().wk.weight.shape == (KV_HEADS * SIZE, WIDTH)


@pytest.mark.parametrize("kind", ["none", "right", "left", "full-row"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("flash", [False, True])
def test_attention_is_its_formula(flash, kv_heads, kind):
    module, x, mask = built(kv_heads=kv_heads, flash=flash).double(), normal(3, 7, WIDTH), padding(kind)
    output = module(x, mask)
    assert output.dtype == torch.float64
    want = formula(module, x, mask, 0.0 if flash else np.nan)
    np.testing.assert_allclose(output.detach(), want, atol=2e-6)  # float32 tables; everything else is float64
    # Left padding leaves the first queries without keys: NaN by hand, 0 through PyTorch's attention.
    assert np.isnan(want).any() == (kind in ("left", "full-row") and not flash)


def test_only_the_tables_are_narrower_than_float64():
    module, x, mask = built(flash=False).double(), normal(2, 7, WIDTH), padding("none", 2)
    assert module.freqs_cos.dtype == torch.float32
    turns = torch.arange(16, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    exact = Attention.forward(module, x, turns.cos()[:7], turns.sin()[:7], mask)
    np.testing.assert_allclose(exact.detach(), formula(module, x, mask, np.nan), atol=1e-12)


def test_both_paths_agree_and_the_mask_may_be_left_out():
    by_hand, fused = built(Attention, flash=False).double(), built(Attention).double()
    x, tables = normal(2, 7, WIDTH), [t[:7] for t in rope.cos_sin_tables(16, SIZE)]
    torch.testing.assert_close(by_hand(x, *tables), fused(x, *tables))
    torch.testing.assert_close(fused(x, *tables), fused(x, *tables, padding("none", 2)))
    output, weights = by_hand(x, *tables, padding("right", 2).int(), need_weights=True)
    assert weights.shape == (2, HEADS, 7, 7)
    torch.testing.assert_close(output, fused(x, *tables, padding("right", 2)))


def test_repeat_kv_repeats_each_head_in_place():
    x = normal(2, 3, 2, 4)
    torch.testing.assert_close(repeat_kv(x, 3), torch.repeat_interleave(x, 3, dim=2))
    assert repeat_kv(x, 1) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_and_softmax_stay_float32_in_half_precision(dtype):
    module, x, mask = built(flash=False).to(dtype), normal(2, 16, WIDTH).to(dtype), padding("none", 2, 16)
    assert module.freqs_sin.dtype == torch.float32 and module.mask.dtype == dtype
    with SoftmaxInputs() as softmax:
        output = module(x, mask)
    assert softmax.dtypes == [torch.float32]
    assert output.dtype == dtype
    want = copy.deepcopy(module).double()(x.double(), mask)
    assert ((output - want).norm() / want.norm()).item() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: built()(torch.zeros(1, 17, WIDTH), padding("none", 1, 17)), r"17 positions, but the RoPE table"),
        (
            lambda: built(Attention, flash=False)(torch.zeros(1, 17, WIDTH), *[torch.zeros(17, 4)] * 2),
            r"17 positions, but the causal mask buffer",
        ),
        (lambda: built(kv_heads=3), r"4 query heads cannot share 3 key/value heads"),
        (lambda: Attention(30, 4), r"cannot be split into 4 heads"),
        (lambda: SelfAttention(36, 4), r"pairs, but the head size is 9"),
        (
            lambda: built(Attention)(torch.zeros(1, 4, WIDTH), *[torch.zeros(4, 4)] * 2, need_weights=True),
            r"no attention weights.*flash=False",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call()


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    counts = assert_exports(form, exporter)
    assert counts["Softmax"] + counts["Attention"] == form.attentions == 1
    assert form.ropes == 2
