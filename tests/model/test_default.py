import copy

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports, export, run, session

from engines.errors import UsageError
from export.model import draw, registry
from export.model.default import FORMS, MultiHeadAttention

OPTIONS = {
    "half": {},
    "interleaved": {"rotary": "interleaved"},
    "partial": {"rotary_dim": 8},
    "no-rope": {"rotary": None},
    "causal": {"causal": True},
}


def built(**options):
    return draw.seeded(lambda: MultiHeadAttention(48, 3, **options))


def drawn(batch=3, length=7, width=48, padding="right"):
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(batch, length, width, generator=rng)
    return x, draw.keep_mask(padding, batch, length, rng)


def formula(module, x, mask, *, layout="half", rotary_dim=None, causal=False, empty=np.nan):
    """The attention of the README, in float64 loops."""
    x = plain.f64(x)
    query, key, value = (
        plain.split_heads(plain.linear(p, x), module.num_heads) for p in (module.q_proj, module.k_proj, module.v_proj)
    )
    if layout:
        query, key = (plain.rotated(t, layout, rotary_dim) for t in (query, key))
    keep = np.ones((1, 1, x.shape[1], x.shape[1]), bool) if mask is None else mask.numpy()[:, None, None, :]
    if causal:
        keep = keep & np.tril(np.ones((x.shape[1],) * 2, bool))
    out = plain.attend(query, key, value, keep, empty=empty)
    return plain.linear(module.out_proj, plain.merge_heads(out))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("padding", ["no-mask", "right", "left", "full-row"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_module_computes_its_formula(name, padding, fused):
    module = built(fused=fused, **OPTIONS[name]).double()
    x, mask = drawn(padding="none" if padding == "no-mask" else padding)
    mask = None if padding == "no-mask" else mask
    want = formula(
        module,
        x,
        mask,
        layout={"interleaved": "interleaved", "no-rope": None}.get(name, "half"),
        rotary_dim=8 if name == "partial" else None,
        causal=name == "causal",
        empty=0.0 if fused else np.nan,
    )
    with torch.no_grad():
        got = module(x.double(), mask)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, want, atol=2e-6)  # float32 tables; everything else is float64
    assert np.isnan(want).any() == ((padding == "full-row" or (name, padding) == ("causal", "left")) and not fused)


def test_weights_are_returned_on_request_one_row_a_query():
    x, mask = drawn()
    out, weights = built(return_weights=True)(x, mask)
    assert weights.shape == (3, 3, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 7))
    assert (weights.masked_select(~mask[:, None, None, :].expand_as(weights)) == 0).all()
    torch.testing.assert_close(out, built()(x, mask))


def relative_error(module, x, mask, want):
    got = module(x, mask).double()
    return ((got - want).norm() / want.norm()).item()


def test_half_precision_at_length_512_stays_within_its_rounding_because_the_tables_stay_float32():
    module = built().half()
    assert module.rope.cos.dtype == torch.float32 and module.q_proj.weight.dtype == torch.float16
    x, mask = drawn(batch=2, length=512)
    x = x.half() * 4  # large enough for the positions to matter
    with torch.no_grad():
        want = copy.deepcopy(module).double()(x.double(), mask)
        kept = relative_error(module, x, mask, want)
        rounded = copy.deepcopy(module)
        exponents = torch.arange(0, 16, 2) / 16
        angles = torch.arange(512).half()[:, None] * (10000.0**-exponents).half()
        rounded.rope.cos, rounded.rope.sin = (torch.cat((t, t), -1) for t in (angles.cos(), angles.sin()))
        lost = relative_error(rounded, x, mask, want)
    unit = 2.0**-11
    assert kept < 4 * unit
    assert lost > 5 * kept


def test_spellings_differ_only_where_a_query_sees_no_key():
    x, mask = drawn(padding="full-row")
    by_hand, by_sdpa = built()(x, mask), built(fused=True)(x, mask)
    torch.testing.assert_close(by_hand[:-1], by_sdpa[:-1])
    assert by_hand[-1].isnan().all()
    torch.testing.assert_close(by_sdpa[-1], built().out_proj.bias.expand(7, 48))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((48, 5), {}, r"embedding size 48 cannot be split into 5 heads"),
        ((45, 3), {}, r"pairs, but the head size is 15\."),
        ((48, 3), {"rotary_dim": 5}, r"pairs, but the rotary width is 5\."),
        ((48, 3), {"rotary_dim": 32}, r"cannot rotate 32 channels of a head that has 16\."),
        ((48, 3), {"fused": True, "return_weights": True}, r"never holds the attention weights.* fused=False"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        MultiHeadAttention(*arguments, **options)


def test_a_sequence_beyond_the_tables_is_refused_in_pytorch():
    module = built(max_length=8)
    module(*drawn(length=8))
    with pytest.raises(UsageError, match=r"has 9 positions, but the RoPE table \(max_length\) holds 8\."):
        module(*drawn(length=9))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_sequence_beyond_the_tables_is_an_error_in_the_exported_graph_not_an_answer(exporter):
    x, mask = drawn(length=6)
    sequence = {0: "batch", 1: "length"}
    model = export(built(max_length=8), {"x": x, "mask": mask}, {"x": sequence, "mask": sequence}, exporter)
    runtime = session(model)
    run(runtime, dict(zip(("x", "mask"), drawn(length=8), strict=True)))
    with pytest.raises(Exception, match=r"by a dimension other than 1\. 8 by 9"):
        run(runtime, dict(zip(("x", "mask"), drawn(length=9), strict=True)))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", [form.name for form in FORMS])
def test_the_form_exports_and_runs_at_other_shapes(name, exporter):
    operators = assert_exports(registry.get(name), exporter)
    native = exporter == "dynamo" and name == "mha-rope-sdpa"
    assert operators["Attention"] == native and operators["Softmax"] == (not native)
