import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports

from engines.errors import UsageError
from export.model import draw
from export.model.flash import FORMS, MHA

WIDTH, HEADS = 24, 3


def built(**options):
    return draw.seeded(lambda: MHA(WIDTH, HEADS, **options)).double()


def test_parameters_are_named_as_upstream_names_them():
    assert {n: tuple(p.shape) for n, p in built().state_dict().items()} == {
        "Wqkv.weight": (3 * WIDTH, WIDTH),
        "Wqkv.bias": (3 * WIDTH,),
        "out_proj.weight": (WIDTH, WIDTH),
        "out_proj.bias": (WIDTH,),
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_attention_is_its_formula(causal, scale):
    module = built(causal=causal, softmax_scale=scale)
    x = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q, k, v = (plain.split_heads(part, HEADS) for part in np.split(plain.linear(module.Wqkv, x.numpy()), 3, axis=-1))
    keep = np.tril(np.ones((6, 6), bool)) if causal else None
    context = plain.attend(q if scale is None else q * scale * np.sqrt(WIDTH // HEADS), k, v, keep)
    output = module(x)
    assert output.dtype == torch.float64
    np.testing.assert_allclose(output.detach(), plain.linear(module.out_proj, plain.merge_heads(context)), atol=1e-12)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="cannot be split into 5 heads"):
        MHA(WIDTH, 5)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports(form, exporter):
    counts = assert_exports(form, exporter)
    assert counts["Softmax"] + counts["Attention"] == form.attentions == 1
