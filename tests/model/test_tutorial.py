import math

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports

from engines.errors import UsageError
from export.model import draw
from export.model.tutorial import FORMS, CausalSelfAttention, MultiHeadAttention, scaled_dot_product_attention

WIDTH, HEADS = 24, 3


def built(kind=MultiHeadAttention, **options):
    return draw.seeded(lambda: kind(WIDTH, HEADS, **options))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(module, query, memory, keep, empty):
    q, k, v = (
        plain.split_heads(plain.linear(layer, plain.f64(x)), HEADS)
        for layer, x in ((module.W_q, query), (module.W_k, memory), (module.W_v, memory))
    )
    context = plain.attend(q, k, v, keep)
    for b, h, i in np.argwhere(np.isnan(context).all(-1)):
        context[b, h, i] = v[b, h].mean(0) if empty == "mean" else 0.0
    return plain.linear(module.W_o, plain.merge_heads(context))


def test_parameters_are_named_as_upstream_names_them():
    assert set(built().state_dict()) == {f"W_{n}.{p}" for n in "qkvo" for p in ("weight", "bias")}


@pytest.mark.parametrize("padding", ["none", "right", "left", "full-row"])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_is_its_formula(fused, padding):
    module, query, memory = built(fused=fused).double(), normal(3, 5, WIDTH), normal(3, 7, WIDTH, seed=2)
    keep = draw.keep_mask(padding, 3, 7, torch.Generator().manual_seed(3))[:, None, None]
    output = module(query, memory, memory, keep)
    assert output.dtype == torch.float64
    want = formula(module, query, memory, keep.numpy(), "zero" if fused else "mean")
    np.testing.assert_allclose(output.detach(), want, atol=1e-12)


def test_the_causal_layer_sees_no_later_key():
    module, x = built(CausalSelfAttention).double(), normal(2, 6, WIDTH)
    want = formula(module, x, x, np.tril(np.ones((6, 6), bool)), "mean")
    np.testing.assert_allclose(module(x).detach(), want, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_a_mask_may_be_of_any_dtype(kind):
    module, x = built(), normal(2, 6, WIDTH).float()
    keep = draw.keep_mask("right", 2, 6, torch.Generator().manual_seed(3))[:, None, None]
    torch.testing.assert_close(module(x, x, x, keep.to(kind)), module(x, x, x, keep))


@pytest.mark.parametrize("fused", [False, True])
def test_weights_on_request_average_the_values(fused):
    module, x = built(fused=fused).double(), normal(2, 6, WIDTH)
    keep = draw.keep_mask("right", 2, 6, torch.Generator().manual_seed(3))[:, None, None]
    output, weights = module(x, x, x, keep, need_weights=True)
    assert weights.shape == (2, HEADS, 6, 6)
    value = plain.split_heads(plain.linear(module.W_v, x.numpy()), HEADS)
    context = np.einsum("bhls,bhsd->bhld", weights.detach().numpy(), value)
    np.testing.assert_allclose(output.detach(), plain.linear(module.W_o, plain.merge_heads(context)), atol=1e-12)
    torch.testing.assert_close(output, module(x, x, x, keep))


def test_the_function_returns_output_and_weights_and_drops_only_when_told():
    q, k, v = normal(2, 3, 4), normal(2, 5, 4, seed=2), normal(2, 5, 6, seed=3)
    output, weights = scaled_dot_product_attention(q, k, v)
    np.testing.assert_allclose(output, plain.attend(*(x[:, None].numpy() for x in (q, k, v)))[:, 0], atol=1e-12)
    torch.testing.assert_close(weights @ v, output)
    torch.manual_seed(0)
    dropped = scaled_dot_product_attention(q, k, v, dropout=torch.nn.Dropout(0.5))[1]
    assert (dropped == 0).any() and not (weights == 0).any()


def test_the_fill_is_a_large_number_and_not_infinity():
    # A key's own score a little below the fill would lose to a masked key.
    low = torch.tensor([[-1e9 - math.log(3.0)], [0.0]], dtype=torch.float64)
    _, weights = scaled_dot_product_attention(torch.ones(1, 1, dtype=torch.float64), low, low, torch.tensor([[1, 0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_half_precision_gives_the_mean_too_where_a_query_sees_no_key():
    module, x = built().half(), normal(2, 6, WIDTH).half()
    keep = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    keep[-1] = False
    output = module(x, x, x, keep)
    mean = module.W_o(module.W_v(x)[-1].float().mean(0).half())
    torch.testing.assert_close(output[-1], mean.expand(6, WIDTH), rtol=0, atol=2e-3)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="embedding size 32 cannot be split into 3 heads"):
        MultiHeadAttention(32, 3)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    counts = assert_exports(form, exporter)
    assert counts["Softmax"] + counts["Attention"] == form.attentions == 1
    assert (counts["Attention"] == 1) == (form.name == "tutorial-sdpa" and exporter == "dynamo")
