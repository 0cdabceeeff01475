import math

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports, export, run, session
from softmax_inputs import SoftmaxInputs

from engines.errors import UsageError
from export.model import draw
from export.model.form import Case
from export.model.minigpt import FORMS, MultiHeadAttention, SelfAttention, additive_causal_mask

WIDTH, HEADS = 24, 3


def built(kind=MultiHeadAttention, **options):
    return draw.seeded(lambda: kind(WIDTH, HEADS, 8, **options))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(module, query, memory, keep=None):
    q, k, v = (
        plain.split_heads(plain.linear(layer, plain.f64(x)), HEADS)
        for layer, x in ((module.wq, query), (module.wk, memory), (module.wv, memory))
    )
    return plain.linear(module.wo, plain.merge_heads(plain.attend(q, k, v, keep)))


@pytest.mark.parametrize("rank", [3, 4])
def test_parameters_and_buffer_are_named_as_upstream_names_them(rank):
    state = built(is_causal=True, mask_rank=rank).state_dict()
    assert set(state) == {"wq.weight", "wk.weight", "wv.weight", "wo.weight", "mask"}
    assert state["mask"].shape == (1,) * (rank - 2) + (8, 8)
    for i, j in np.ndindex(8, 8):
        assert state["mask"].flatten(0, -3)[0, i, j] == (-math.inf if j > i else 0)
    assert "mask" not in built().state_dict()


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_causal_attention_is_its_formula(length, rank):
    module, x = built(SelfAttention, is_causal=True, mask_rank=rank).double(), normal(2, length, WIDTH)
    output = module(x)
    assert output.dtype == torch.float64
    np.testing.assert_allclose(
        output.detach(), formula(module, x, x, np.tril(np.ones((length,) * 2, bool))), atol=1e-12
    )


def test_without_the_buffer_queries_and_keys_may_differ_in_number():
    module, query, memory = built().double(), normal(2, 5, WIDTH), normal(2, 11, WIDTH, seed=2)
    output, weights = module(query, memory, memory, need_weights=True)
    np.testing.assert_allclose(output.detach(), formula(module, query, memory), atol=1e-12)
    assert weights.shape == (2, HEADS, 5, 11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_softmax_runs_in_at_least_float32_and_the_weights_are_cast_back(dtype):
    module, x = built(is_causal=True).to(dtype), normal(2, 6, WIDTH).to(dtype)
    with SoftmaxInputs() as softmax:
        _, weights = module(x, x, x, need_weights=True)
    assert softmax.dtypes == [torch.float64 if dtype == torch.float64 else torch.float32]
    assert weights.dtype == dtype


def test_dropout_while_training_reaches_weights_and_output():
    module, x = built(dropout=0.5).train(), normal(2, 8, WIDTH).float()
    torch.manual_seed(0)
    output, weights = module(x, x, x, need_weights=True)
    assert (weights == 0).any() and (output == 0).any()
    assert not (module.eval()(x, x, x) == 0).any()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: built(SelfAttention, is_causal=True)(torch.zeros(1, 9, WIDTH)),
            r"9 positions, but the causal.*holds 8",
        ),
        (lambda: MultiHeadAttention(WIDTH, 5, 8), r"cannot be split into 5 heads"),
        (lambda: additive_causal_mask(8, rank=2), r"rank 3.*or rank 4.*2 was asked for"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call()


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_the_exported_graph_refuses_a_sequence_beyond_the_buffer(exporter):
    form = FORMS[0]
    inputs = form.draw(Case("example", {"batch": 2, "length": 8}))
    runtime = session(export(form.make(), inputs, form.dynamic, exporter))
    assert run(runtime, form.draw(Case("longest", {"batch": 1, "length": 64})))[0].shape == (1, 64, 64)
    with pytest.raises(Exception, match=r"broadcast an axis.* 64 by 65"):
        run(runtime, form.draw(Case("too long", {"batch": 1, "length": 65})))


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    assert assert_exports(form, exporter)["Softmax"] == form.attentions == 1
