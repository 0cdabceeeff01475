import math

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports
from torch.nn import functional

from engines.errors import UsageError
from export.model import draw
from export.model.form import Case
from export.model.informer import AttentionLayer, DSAttention, FullAttention, TriangularCausalMask
from export.model.informer_forms import FORMS, DeStationarySelfAttention

WIDTH, HEADS = 24, 3
SOFTMAX_FORMS = [form for form in FORMS if form.name.startswith("informer")]


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(inner, **options):
    return draw.seeded(lambda: AttentionLayer(inner, WIDTH, HEADS, **options)).double()


def formula(layer, queries, memory, *, hidden=None, scale=None, tau=None, delta=None):
    """(output, weights) by loops over [B, L, H, D]; hidden [B, L, S] is True = masked."""
    q, k, v = (
        plain.linear(projection, x.numpy()).reshape(*x.shape[:2], HEADS, -1)
        for projection, x in (
            (layer.query_projection, queries),
            (layer.key_projection, memory),
            (layer.value_projection, memory),
        )
    )
    batch, length, keys = q.shape[0], q.shape[1], k.shape[1]
    context, weights = np.zeros((batch, length, HEADS, v.shape[-1])), np.zeros((batch, HEADS, length, keys))
    for b, h, i in np.ndindex(batch, HEADS, length):
        scores = np.array([q[b, i, h] @ k[b, j, h] for j in range(keys)])
        scores = scores * (1 if tau is None else float(tau[b])) + (0 if delta is None else delta[b].numpy())
        terms = np.exp(scores * (scale or q.shape[-1] ** -0.5))
        if hidden is not None:
            terms[hidden[b, i]] = 0
        weights[b, h, i] = terms / terms.sum()
        context[b, i, h] = weights[b, h, i] @ v[b, :, h]
    return plain.linear(layer.out_projection, context.reshape(batch, length, -1)), weights


def test_parameters_are_named_as_upstream_names_them():
    names = {f"{n}_projection.{p}" for n in ("query", "key", "value", "out") for p in ("weight", "bias")}
    for inner in (FullAttention(), DSAttention()):
        assert set(built(inner).state_dict()) == names


@pytest.mark.parametrize("length", [10, 6])
def test_encoder_self_attention_is_its_formula(length):
    layer, x = built(FullAttention(mask_flag=False, output_attention=True)), normal(2, length, WIDTH)
    output, weights = layer(x, x, x)
    want, want_weights = formula(layer, x, x)
    assert output.dtype == torch.float64
    np.testing.assert_allclose(output.detach(), want, atol=1e-12)
    np.testing.assert_allclose(weights.detach(), want_weights, atol=1e-12)


def test_decoder_self_attention_is_causal_without_a_mask():
    layer, x = built(FullAttention()), normal(2, 12, WIDTH)
    output, weights = layer(x, x, x)
    later = np.broadcast_to(np.triu(np.ones((12, 12), bool), 1), (2, 12, 12))
    np.testing.assert_allclose(output.detach(), formula(layer, x, x, hidden=later)[0], atol=1e-12)
    assert weights is None


def test_cross_attention_may_have_value_heads_of_another_size():
    layer = built(FullAttention(mask_flag=False, scale=0.3), d_keys=8, d_values=5)
    x, memory = normal(2, 12, WIDTH), normal(2, 6, WIDTH, seed=2)
    assert layer.value_projection.out_features == 15
    want = formula(layer, x, memory, scale=0.3)[0]
    np.testing.assert_allclose(layer(x, memory, memory)[0].detach(), want, atol=1e-12)


def test_a_mask_is_true_where_masked_as_an_object_or_a_tensor():
    layer, x, memory = built(FullAttention()), normal(2, 4, WIDTH), normal(2, 6, WIDTH, seed=2)
    hidden = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(5)) > 0.6
    hidden[..., 0] = False

    class Holder:
        mask = hidden

    output = layer(x, memory, memory, Holder())[0]
    np.testing.assert_allclose(output.detach(), formula(layer, x, memory, hidden=hidden[:, 0].numpy())[0], atol=1e-12)
    torch.testing.assert_close(layer(x, memory, memory, hidden)[0], output)
    without = built(FullAttention(mask_flag=False))
    torch.testing.assert_close(without(x, memory, memory, hidden), without(x, memory, memory))


def test_the_triangular_mask_hides_what_lies_above_the_diagonal():
    mask = TriangularCausalMask(2, 5).mask
    assert mask.shape == (2, 1, 5, 5)
    assert all(mask[b, 0, i, j] == (j > i) for b, i, j in np.ndindex(2, 5, 5))


@pytest.mark.parametrize("masked", [False, True])
def test_destationary_attention_is_its_formula(masked):
    layer, x, tau, delta = built(DSAttention(masked)), normal(2, 7, WIDTH), normal(2, 1).exp(), normal(2, 7, seed=3)
    later = np.broadcast_to(np.triu(np.ones((7, 7), bool), 1), (2, 7, 7)) if masked else None
    want = formula(layer, x, x, hidden=later, tau=tau, delta=delta)[0]
    np.testing.assert_allclose(layer(x, x, x, tau=tau, delta=delta)[0].detach(), want, atol=1e-12)
    full = built(FullAttention(masked))
    torch.testing.assert_close(layer(x, x, x), full(x, x, x))


def test_destationary_attention_is_attention_of_q_times_tau_with_a_bias():
    q, k, v = (normal(2, 7, HEADS, 8, seed=s) for s in (1, 2, 3))
    tau, delta = normal(2, 1).exp(), normal(2, 7, seed=4)
    got = DSAttention(mask_flag=False)(q, k, v, tau=tau, delta=delta)[0]
    heads_first = [x.transpose(1, 2) for x in (q * tau[:, :, None, None], k, v)]
    bias = delta[:, None, None] / math.sqrt(8)
    want = functional.scaled_dot_product_attention(*heads_first, attn_mask=bias.expand(2, HEADS, 7, 7))
    torch.testing.assert_close(got, want.transpose(1, 2))


def test_mix_reads_the_context_heads_first():
    plain_layer, mixed = built(FullAttention()), built(FullAttention(), mix=True)
    plain_layer.out_projection = mixed.out_projection = torch.nn.Identity()
    x = normal(2, 6, WIDTH)
    context = plain_layer(x, x, x)[0].view(2, 6, HEADS, 8)
    torch.testing.assert_close(mixed(x, x, x)[0], context.transpose(1, 2).reshape(2, 6, WIDTH))


def test_a_causal_mask_for_cross_attention_is_refused():
    layer = built(FullAttention())
    with pytest.raises(UsageError, match=r"12 queries and 6 keys.*mask_flag=False"):
        layer(normal(1, 12, WIDTH), normal(1, 6, WIDTH), normal(1, 6, WIDTH))


def test_the_form_draws_a_tau_and_delta_that_show():
    form = next(form for form in FORMS if form.name == "informer-dsattention")
    layer = form.make()
    assert isinstance(layer, DeStationarySelfAttention)
    inputs = form.draw(Case("any", {"batch": 2, "length": 9}))
    without = {**inputs, "tau": torch.ones(2, 1), "delta": torch.zeros(2, 9)}
    assert (layer(**inputs) - layer(**without)).abs().max() > 0.05


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", SOFTMAX_FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    assert assert_exports(form, exporter)["Softmax"] == form.attentions == 1
