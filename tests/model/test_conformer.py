import math

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports
from torch.nn import functional

from engines.errors import UsageError
from export.model import draw
from export.model.conformer import MultiHeadedAttention, RelPositionMultiHeadedAttention, rel_shift
from export.model.conformer_forms import FORMS, ChunkedSelfAttention
from export.model.form import Case

WIDTH, HEADS, SIZE = 24, 3, 8


def built(kind=MultiHeadedAttention, *args, **options):
    return draw.seeded(lambda: kind(HEADS, WIDTH, *args, **options)).double()


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(module, query, memory, *, keep=None, past=None, bias=None, add_to_query=None):
    """Attention by loops; a query that keeps nothing has the context 0. bias is [B, H, L, S], before the scale."""
    q, k, v = (
        plain.split_heads(plain.linear(layer, plain.f64(x)), HEADS)
        for layer, x in ((module.linear_q, query), (module.linear_k, memory), (module.linear_v, memory))
    )
    if past is not None:
        past = past.numpy()
        k, v = (np.concatenate((old, new), axis=2) for old, new in ((past[..., :SIZE], k), (past[..., SIZE:], v)))
    context = np.zeros_like(q)
    for b, h, i in np.ndindex(*q.shape[:3]):
        seen = [j for j in range(k.shape[2]) if keep is None or keep[b, i if keep.shape[1] > 1 else 0, j]]
        if not seen:
            continue
        asking = q[b, h, i] + (0 if add_to_query is None else add_to_query[h])
        scores = np.array([asking @ k[b, h, j] + (0 if bias is None else bias[b, h, i, j]) for j in seen])
        weights = np.exp(scores / math.sqrt(SIZE))
        context[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights / weights.sum(), seen, strict=True))
    return plain.linear(module.linear_out, plain.merge_heads(context)), np.concatenate((k, v), axis=-1)


def keep_of(kind, batch, length, keys):
    rng = torch.Generator().manual_seed(3)
    if kind == "per key":
        return draw.keep_mask("full-row", batch, keys, rng)[:, None]
    keep = torch.rand(batch, length, keys, generator=rng) > 0.4
    keep[0, 1] = False
    return keep


def assert_same(got, want):
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.detach(), want, atol=1e-12)


def test_parameters_are_named_as_upstream_names_them():
    plain_names = {f"linear_{n}.{p}" for n in ("q", "k", "v", "out") for p in ("weight", "bias")}
    assert set(built().state_dict()) == plain_names
    relative = built(RelPositionMultiHeadedAttention).state_dict()
    assert set(relative) == plain_names | {"linear_pos.weight", "pos_bias_u", "pos_bias_v"}
    assert relative["pos_bias_u"].shape == (HEADS, SIZE)
    assert "linear_k.bias" not in built(key_bias=False).state_dict()


@pytest.mark.parametrize("cached", [0, 4])
@pytest.mark.parametrize("kind", [None, "per key", "per query"])
def test_attention_is_its_formula_and_the_new_cache_always_comes_back(kind, cached):
    module, query, memory = built(), normal(2, 5, WIDTH), normal(2, 7, WIDTH, seed=2)
    past = normal(2, HEADS, cached, 2 * SIZE, seed=4) if cached else None
    keep = None if kind is None else keep_of(kind, 2, 5, 7 + cached)
    output, cache = module(query, memory, memory, keep, None, past)
    want, want_cache = formula(module, query, memory, keep=keep, past=past)
    assert_same(output, want)
    assert_same(cache, want_cache)


def test_a_query_without_keys_yields_the_output_bias():
    module, x = built(), normal(2, 5, WIDTH)
    output, _ = module(x, x, x, keep_of("per key", 2, 5, 5))
    torch.testing.assert_close(output[-1], module.linear_out.bias.expand(5, WIDTH))


def test_a_mask_wider_than_the_keys_is_cut_and_numbers_do_for_bools():
    module, x, keep = built(), normal(2, 5, WIDTH), keep_of("per query", 2, 5, 9)
    torch.testing.assert_close(module(x, x, x, keep)[0], module(x, x, x, keep[..., :5].int())[0])


def test_upstreams_empty_tensors_stand_for_none():
    module, x = built(), normal(2, 5, WIDTH)
    output, cache = module(x, x, x, torch.ones(0, 0, 0, dtype=torch.bool), torch.empty(0), torch.zeros(0, 0, 0, 0))
    torch.testing.assert_close(output, module(x, x, x)[0])
    torch.testing.assert_close(module(x, x, x, None, None, torch.zeros(2, HEADS, 0, 2 * SIZE))[1], cache)


def test_two_streaming_steps_are_one_pass():
    module, x = built(), normal(2, 9, WIDTH)
    first, second = x[:, :5], x[:, 5:]
    _, cache = module(first, first, first)
    output, cache = module(second, second, second, None, None, cache)
    whole, whole_cache = module(x, x, x)
    torch.testing.assert_close(output, whole[:, 5:])
    torch.testing.assert_close(cache, whole_cache)


def test_weights_on_request_are_zero_where_masked():
    module, x, keep = built(), normal(2, 5, WIDTH), keep_of("per query", 2, 5, 5)
    output, _, weights = module(x, x, x, keep, need_weights=True)
    assert (weights.masked_select(~keep[:, None].expand_as(weights)) == 0).all()
    torch.testing.assert_close(weights.sum(-1), keep.any(-1).double()[:, None].expand(2, HEADS, 5))
    torch.testing.assert_close(output, module(x, x, x, keep)[0])


def test_rel_shift_is_its_closed_form():
    length, width = 5, 9
    x = normal(2, HEADS, length, width)
    shifted = rel_shift(x)
    assert shifted.shape == (2, HEADS, length, width // 2 + 1)
    for i in range(length):
        for j in range(width // 2 + 1):
            torch.testing.assert_close(shifted[:, :, i, j], x[:, :, i, length - 1 - i + j])


@pytest.mark.parametrize("relative", [True, False])
def test_relative_attention_is_its_formula(relative):
    module, x, keep = built(RelPositionMultiHeadedAttention), normal(2, 5, WIDTH), keep_of("per query", 2, 5, 5)
    rows = normal(1, 9 if relative else 5, WIDTH, seed=6)
    p = plain.split_heads(np.einsum("bni,oi->bno", rows.numpy(), plain.f64(module.linear_pos.weight)), HEADS)[0]
    q = plain.split_heads(plain.linear(module.linear_q, x.numpy()), HEADS)
    bias = np.empty((2, HEADS, 5, 5))
    for b, h, i, j in np.ndindex(*bias.shape):
        row = 5 - 1 - i + j if relative else j
        bias[b, h, i, j] = (q[b, h, i] + plain.f64(module.pos_bias_v)[h]) @ p[h, row]
    want, want_cache = formula(module, x, x, keep=keep, bias=bias, add_to_query=plain.f64(module.pos_bias_u))
    output, cache = module(x, x, x, keep, rows)
    assert_same(output, want)
    assert_same(cache, want_cache)


def test_relative_attention_is_attention_of_q_plus_u_with_a_bias():
    module, x, rows = built(RelPositionMultiHeadedAttention), normal(2, 5, WIDTH), normal(1, 9, WIDTH, seed=6)
    keep = draw.keep_mask("right", 2, 5, torch.Generator().manual_seed(3))[:, None]
    q, k, v, p = (
        layer(y).view(y.shape[0], -1, HEADS, SIZE).transpose(1, 2)
        for layer, y in ((module.linear_q, x), (module.linear_k, x), (module.linear_v, x), (module.linear_pos, rows))
    )
    bias = rel_shift((q + module.pos_bias_v[:, None]) @ p.mT) / math.sqrt(SIZE)
    bias = bias.masked_fill(~keep[:, None], -math.inf)
    context = functional.scaled_dot_product_attention(q + module.pos_bias_u[:, None], k, v, attn_mask=bias)
    mapped = module.linear_out(context.transpose(1, 2).reshape(2, 5, WIDTH))
    torch.testing.assert_close(module(x, x, x, keep, rows)[0], mapped)


@pytest.mark.parametrize("left", [-1, 0, 1])
def test_the_chunk_mask_lets_a_query_see_its_chunk_and_so_many_before_it(left):
    module, x = built(ChunkedSelfAttention, 3, left), normal(2, 8, WIDTH)
    padding = draw.keep_mask("full-row", 2, 8, torch.Generator().manual_seed(3))
    keep = np.zeros((2, 8, 8), bool)
    for b, i, j in np.ndindex(2, 8, 8):
        keep[b, i, j] = padding[b, j] and j // 3 <= i // 3 and (left < 0 or j // 3 >= i // 3 - left)
    for b, i in np.ndindex(2, 8):
        keep[b, i] |= not keep[b, i].any()
    assert_same(module(x, padding[:, None])[0], formula(module, x, x, keep=keep)[0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: MultiHeadedAttention(3, 32), r"embedding size 32 cannot be split into 3 heads"),
        (lambda: built(RelPositionMultiHeadedAttention)(*[normal(1, 4, WIDTH)] * 3), r"needs pos_emb"),
        (
            lambda: built(RelPositionMultiHeadedAttention)(*[normal(1, 4, WIDTH)] * 3, None, normal(1, 8, WIDTH)),
            r"pos_emb has 8 rows for 4 keys\. Pass 7 rows",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("point", [0, 1, 2], ids=["min", "opt", "max"])
def test_dimensions_that_follow_from_others_do_so_at_every_point_of_the_profile(form, point):
    dims = {name: sizes[point] for name, sizes in form.dims.items()}
    inputs = form.draw(Case("point", dims))
    for name, axes in form.dynamic.items():
        for axis, dim in axes.items():
            assert inputs[name].shape[axis] == dims[dim], (name, axis)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    assert exporter in form.exporters
    assert assert_exports(form, exporter)["Softmax"] == form.attentions == 1
