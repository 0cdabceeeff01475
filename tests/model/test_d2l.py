import math

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports

from engines.errors import UsageError
from export.model import draw
from export.model.d2l import FORMS, MultiHeadAttention, masked_softmax
from export.model.form import Case

WIDTH, HEADS = 24, 3


def built(**options):
    return draw.seeded(lambda: MultiHeadAttention(WIDTH, HEADS, **options))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(module, queries, memory, lengths):
    """lengths [B, L]: query i of row b sees that many keys, and with none of them the mean of all."""
    q, k, v = (
        plain.split_heads(plain.linear(layer, plain.f64(x)), HEADS)
        for layer, x in ((module.W_q, queries), (module.W_k, memory), (module.W_v, memory))
    )
    keep = np.arange(k.shape[2]) < lengths.numpy()[:, None, :, None]
    context = plain.attend(q, k, v, keep)
    for b, h, i in np.argwhere(np.isnan(context).all(-1)):
        context[b, h, i] = v[b, h].mean(0)
    return plain.linear(module.W_o, plain.merge_heads(context))


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_named_as_upstream_names_them(bias):
    names = {f"W_{n}.weight" for n in "qkvo"} | ({f"W_{n}.bias" for n in "qkvo"} if bias else set())
    assert set(built(bias=bias).state_dict()) == names


@pytest.mark.parametrize("lengths", [None, [7, 2, 0], [[1, 2, 3, 4, 5], [7, 7, 7, 0, 1], [0, 0, 0, 0, 0]]], ids=str)
def test_attention_is_its_formula(lengths):
    module, queries, memory = built().double(), normal(3, 5, WIDTH), normal(3, 7, WIDTH, seed=2)
    valid = None if lengths is None else torch.tensor(lengths)
    output = module(queries, memory, memory, valid)
    assert output.dtype == torch.float64
    per_query = torch.full((3, 5), 7) if valid is None else valid.reshape(3, -1).expand(3, 5)
    np.testing.assert_allclose(output.detach(), formula(module, queries, memory, per_query), atol=1e-12)


def test_upstreams_repeated_lengths_are_the_expanded_ones():
    valid = torch.tensor([3, 1, 2])
    assert torch.equal(built()._per_head(valid), torch.repeat_interleave(valid, HEADS, dim=0))
    assert torch.equal(built()._per_head(valid[:, None]), torch.repeat_interleave(valid[:, None], HEADS, dim=0))


def test_weights_are_kept_heads_merged_into_the_batch():
    module, x = built(), normal(2, 5, WIDTH).float()
    assert module.attention.attention_weights is None
    module(x, x, x, torch.tensor([5, 2]))
    weights = module.attention.attention_weights
    assert weights.shape == (2 * HEADS, 5, 5)
    assert (weights[HEADS:, :, 2:] == 0).all() and (weights[:HEADS] > 0).all()


def test_queries_keys_and_values_may_have_widths_of_their_own():
    module = built(query_size=5, key_size=6, value_size=7)
    assert module(torch.randn(2, 3, 5), torch.randn(2, 4, 6), torch.randn(2, 4, 7)).shape == (2, 3, WIDTH)


def test_masked_softmax_fills_with_a_large_number_and_not_infinity():
    scores = normal(2, 3, 4)
    weights = masked_softmax(scores, torch.tensor([0, 1]))
    torch.testing.assert_close(weights[0], torch.full((3, 4), 0.25, dtype=torch.float64))
    torch.testing.assert_close(weights[1, :, 0], torch.ones(3, dtype=torch.float64))
    # One key a million below the fill would win against it: the fill is -1e6 and not less.
    low = torch.tensor([[[-1e6 - math.log(3.0), 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(masked_softmax(low, torch.tensor([1]))[0, 0, 1].item(), 0.75, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"valid_lens has shape \(1, 1, 1\)\. Pass \[B\] or \[B, L\]"):
        masked_softmax(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    with pytest.raises(UsageError, match="cannot be split into 5 heads"):
        MultiHeadAttention(WIDTH, 5)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_paddings_are_drawn_as_named(form):
    dims = {"batch": 3, "length": 4, "memory": 9}
    drawn = {kind: form.draw(Case(kind, dims, kind))["valid_lens"] for kind in ("none", "right", "full-row")}
    assert (drawn["none"] == 9).all() and drawn["none"].dtype == torch.int64
    assert (drawn["right"] > 0).all() and (drawn["right"] < 9).any()
    assert (drawn["full-row"][-1] == 0).all() and (drawn["full-row"][:-1] > 0).all()


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    assert assert_exports(form, exporter)["Softmax"] == form.attentions == 1
