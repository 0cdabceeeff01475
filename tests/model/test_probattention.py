import math

import numpy as np
import pytest
import torch
from exporting import assert_exports, export

from engines.errors import UsageError
from export.model import draw
from export.model.form import Case
from export.model.informer import AttentionLayer, FullAttention
from export.model.informer_forms import FORMS
from export.model.probattention import ProbAttention, sample_count, sample_keys

HEADS, SIZE = 3, 8
PROB_FORMS = [form for form in FORMS if form.name.startswith("prob")]


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(length, keys=None):
    keys = length if keys is None else keys
    return normal(2, length, HEADS, SIZE), normal(2, keys, HEADS, SIZE, seed=2), normal(2, keys, HEADS, 5, seed=3)


def sample_of(factor, length, keys=None):
    return sample_keys(factor, length, length if keys is None else keys, torch.Generator().manual_seed(4))


def formula(q, k, v, sample, chosen, masked):
    """(context [B, L, H, Dv], weights [B, H, L, S]) by loops; `chosen` queries attend."""
    q, k, v = (x.numpy() for x in (q, k, v))
    batch, length, keys = q.shape[0], q.shape[1], k.shape[1]
    context, weights = np.zeros((batch, length, HEADS, v.shape[-1])), np.full((batch, HEADS, length, keys), 1 / keys)
    for b, h in np.ndindex(batch, HEADS):
        measure = []
        for i in range(length):
            products = [q[b, i, h] @ k[b, j, h] for j in sample[i].tolist()]
            measure.append(max(products) - sum(products) / keys)
        top = sorted(range(length), key=lambda i: -measure[i])[:chosen]
        for i in range(length):
            seen = i + 1 if masked else keys
            if i in top:
                terms = np.exp([q[b, i, h] @ k[b, j, h] / math.sqrt(SIZE) for j in range(seen)])
                weights[b, h, i] = np.append(terms / terms.sum(), np.zeros(keys - seen))
                context[b, i, h] = weights[b, h, i] @ v[b, :, h]
            else:
                context[b, i, h] = v[b, :seen, h].sum(0) / (1 if masked else keys)
    return context, weights


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 24])
def test_attention_is_its_formula(length, masked):
    q, k, v = drawn(length)
    sample = sample_of(2, length)
    attention = ProbAttention(masked, factor=2, scrambled=False, output_attention=True)
    context, weights = attention(q, k, v, index_sample=sample)
    want, want_weights = formula(q, k, v, sample, min(length, max(1, 2 * math.ceil(math.log(length)))), masked)
    assert context.dtype == torch.float64
    np.testing.assert_allclose(context, want, atol=1e-12)
    np.testing.assert_allclose(weights, want_weights, atol=1e-12)


def test_cross_attention_counts_queries_and_samples_by_their_own_lengths():
    q, k, v = drawn(24, 6)
    sample = sample_of(2, 24, 6)
    assert sample.shape == (24, 4)
    context, _ = ProbAttention(False, factor=2, scrambled=False)(q, k, v, index_sample=sample)
    np.testing.assert_allclose(context, formula(q, k, v, sample, 8, False)[0], atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_where_every_query_is_chosen_it_is_full_attention_up_to_the_layout(masked):
    q, k, v = drawn(9)
    context, weights = ProbAttention(masked, output_attention=True)(q, k, v, index_sample=sample_of(5, 9))
    want, want_weights = FullAttention(masked, output_attention=True)(q, k, v)
    assert sample_count(5, 9) == 9
    torch.testing.assert_close(context.transpose(1, 2), want)
    torch.testing.assert_close(weights, want_weights)


def test_the_layer_scrambles_heads_and_time_unless_told_not_to():
    width, x = 2 * HEADS, normal(2, 7, 2 * HEADS)
    layers = {
        scrambled: draw.seeded(
            lambda scrambled=scrambled: AttentionLayer(ProbAttention(False, scrambled=scrambled), width, HEADS)
        ).double()
        for scrambled in (True, False)
    }
    for layer in layers.values():
        layer.out_projection = torch.nn.Identity()
    straight = layers[False](x, x, x, index_sample=sample_of(5, 7))[0]
    full = draw.seeded(lambda: AttentionLayer(FullAttention(False), width, HEADS)).double()
    full.out_projection = torch.nn.Identity()
    torch.testing.assert_close(straight, full(x, x, x)[0])
    scrambled = layers[True](x, x, x, index_sample=sample_of(5, 7))[0]
    flat = np.concatenate([straight.view(2, 7, HEADS, 2)[:, :, h].detach().numpy() for h in range(HEADS)], axis=1)
    np.testing.assert_allclose(scrambled.detach(), flat.reshape(2, 7, width))
    assert ProbAttention().scrambled


def test_parameters_are_named_as_upstream_names_them_and_the_sample_is_not_saved():
    names = {f"{n}_projection.{p}" for n in ("query", "key", "value", "out") for p in ("weight", "bias")}
    assert set(AttentionLayer(ProbAttention(lengths=(9, 9)), 6, HEADS).state_dict()) == names


@pytest.mark.parametrize(("length", "count"), [(1, 1), (2, 2), (3, 3), (7, 4), (8, 6), (20, 6), (21, 8), (64, 10)])
def test_the_number_chosen_is_a_logarithm_within_bounds(length, count):
    assert sample_count(2, length) == count


def test_the_sample_is_seeded_within_range_and_one_with_the_buffer():
    sample = sample_of(2, 24, 10)
    assert sample.shape == (24, sample_count(2, 10)) and sample.dtype == torch.int64
    assert sample.min() >= 0 and sample.max() < 10
    q, k, v = drawn(24, 10)
    held = ProbAttention(False, factor=2, lengths=(24, 10), seed=4)
    torch.testing.assert_close(held(q, k, v), ProbAttention(False, factor=2)(q, k, v, index_sample=sample))
    assert not torch.equal(held.index_sample, ProbAttention(False, factor=2, lengths=(24, 10), seed=5).index_sample)


@pytest.mark.parametrize(
    ("attention", "shape", "sample", "sentence"),
    [
        (ProbAttention(False), (9, 9), None, r"pass index_sample \[L, U\]"),
        (ProbAttention(False, factor=2), (9, 9), sample_of(2, 8), r"shape \(8, 6\).*9 queries and 9 keys.*\(9, 6\)"),
        (ProbAttention(False, lengths=(8, 8)), (9, 9), None, r"need \(9, 9\)"),
        (ProbAttention(True), (9, 6), sample_of(5, 9, 6), r"9 queries and 6 keys"),
    ],
)
def test_what_does_not_fit_is_refused(attention, shape, sample, sentence):
    with pytest.raises(UsageError, match=sentence):
        attention(*drawn(*shape), index_sample=sample)


class Cross(AttentionLayer):
    def forward(self, x, memory, index_sample):
        return super().forward(x, memory, memory, index_sample=index_sample)[0]


def test_cross_attention_over_dynamic_lengths_is_refused_with_the_remedy():
    layer = draw.seeded(lambda: Cross(ProbAttention(False, factor=2), 6, HEADS))
    inputs = {"x": torch.zeros(2, 24, 6), "memory": torch.zeros(2, 10, 6), "index_sample": sample_of(2, 24, 10)}
    dynamic = {"x": {1: "length"}, "memory": {1: "memory"}, "index_sample": {0: "length"}}
    with pytest.raises(UsageError, match=r"fixed lengths only.*Make the sequence axes static"):
        export(layer, inputs, dynamic, "torchscript")


@pytest.mark.parametrize("form", PROB_FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("length", [9, 32, 64])
def test_drawn_inputs_leave_no_doubt_which_queries_are_chosen(form, length):
    layer = form.make().double()
    inputs = form.draw(Case("any", {"batch": 4, "length": length}, seed=length))
    x, inner = inputs["x"].double(), layer.inner_attention
    query, key = (
        p(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for p in (layer.query_projection, layer.key_projection)
    )
    measure = inner.measure(query, key, inputs.get("index_sample", inner.index_sample)).sort(-1, descending=True).values
    chosen = sample_count(2, x.shape[1])
    gap = (measure[..., chosen - 1] - measure[..., chosen]) / (measure[..., 0] - measure[..., -1])
    assert gap.min() > 0.02  # bfloat16 rounds M by about 0.005 of its range


@pytest.mark.parametrize("form", PROB_FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("point", [0, 1, 2], ids=["min", "opt", "max"])
def test_dimensions_that_follow_from_others_do_so_at_every_point_of_the_profile(form, point):
    dims = {name: sizes[point] for name, sizes in form.dims.items()}
    inputs = form.draw(Case("point", dims))
    for name, axes in form.dynamic.items():
        for axis, dim in axes.items():
            assert inputs[name].shape[axis] == dims[dim], (name, axis)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("form", PROB_FORMS, ids=lambda form: form.name)
def test_every_form_exports_and_chooses_in_the_graph(form, exporter):
    counts = assert_exports(form, exporter)
    assert counts["Softmax"] == counts["TopK"] == form.attentions == 1


def test_the_exported_topk_is_sorted_as_tensorrt_needs_it():
    form = PROB_FORMS[0]
    inputs = form.draw(Case("example", {"batch": 2, "length": 24}))
    model = export(form.make(), inputs, form.dynamic, "torchscript")
    (top,) = (node for node in model.graph.node if node.op_type == "TopK")
    assert {a.name: a.i for a in top.attribute}.get("sorted", 1) == 1
