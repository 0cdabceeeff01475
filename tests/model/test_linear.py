import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports

from engines.errors import UsageError
from export.model import draw
from export.model.linear import FORMS, AttentionLayer, feature_map, linear_attention

WIDTH, HEADS = 24, 3


def built():
    return draw.seeded(lambda: AttentionLayer(WIDTH, HEADS))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def quadratic(q, k, v, keep=None, eps=1e-6):
    """The same attention with its weights written out, one [L, S] matrix a head."""
    weights = np.einsum("bhld,bhsd->bhls", phi(q), phi(k))
    if keep is not None:
        weights = weights * keep[:, None, None, :]
    return np.einsum("bhls,bhse->bhle", weights / (weights.sum(-1, keepdims=True) + eps), v)


def test_parameters_are_named_as_upstream_names_them():
    names = {f"{n}_projection.{p}" for n in ("query", "key", "value", "out") for p in ("weight", "bias")}
    assert set(built().state_dict()) == names


@pytest.mark.parametrize("padding", ["none", "right", "left", "full-row"])
def test_the_layer_is_its_formula(padding):
    module, queries, memory = built().double(), normal(3, 5, WIDTH), normal(3, 7, WIDTH, seed=2)
    keep = draw.keep_mask(padding, 3, 7, torch.Generator().manual_seed(3))
    q, k, v = (
        plain.split_heads(plain.linear(layer, x.numpy()), HEADS)
        for layer, x in (
            (module.query_projection, queries),
            (module.key_projection, memory),
            (module.value_projection, memory),
        )
    )
    output = module(queries, memory, memory, keep)
    assert output.dtype == torch.float64
    want = plain.linear(module.out_projection, plain.merge_heads(quadratic(q, k, v, keep.numpy())))
    np.testing.assert_allclose(output.detach(), want, atol=1e-12)
    if padding == "none":
        torch.testing.assert_close(module(queries, memory, memory), output)
    if padding == "full-row":
        torch.testing.assert_close(output[-1], module.out_projection.bias.expand(5, WIDTH))


def test_the_feature_map_is_positive_and_elu_plus_one():
    x = torch.linspace(-20, 20, 41, dtype=torch.float64)
    np.testing.assert_allclose(feature_map(x), phi(x.numpy()), atol=1e-12)
    assert (feature_map(x) > 0).all()


class Largest(torch.overrides.TorchFunctionMode):
    """Remembers how many elements the largest tensor made under it has."""

    elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("length", [64, 256])
def test_no_tensor_grows_with_the_square_of_the_length(length):
    x = normal(1, 1, length, 8)
    with Largest() as largest:
        linear_attention(x, x, x)
    assert largest.elements == length * 8


def test_half_precision_sums_in_float32():
    q, k, v = (30 * normal(1, 1, 512, 8, seed=s).half() for s in (1, 2, 3))
    output = linear_attention(q, k, v)
    assert output.dtype == torch.float16 and output.isfinite().all()
    want = linear_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(output.double(), want, rtol=1e-3, atol=1e-2)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="cannot be split into 5 heads"):
        AttentionLayer(WIDTH, 5)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_exports_without_a_softmax(form, exporter):
    counts = assert_exports(form, exporter)
    assert counts["Softmax"] + counts["Attention"] == form.attentions == 0
