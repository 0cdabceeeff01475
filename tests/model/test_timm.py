import copy

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports

from engines.errors import UsageError
from export.model import draw, registry, rope
from export.model.timm import Attention, AttentionRope, RmsNorm, layer_norm
from export.model.timm_forms import FORMS, PatchAttention, PatchRope

DIM, HEADS, SIZE = 24, 3, 8


def normalised(norm, x):
    """What a norm layer does to [..., C], by its definition."""
    if isinstance(norm, torch.nn.Identity):
        return x
    if isinstance(norm, RmsNorm):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * plain.f64(norm.weight)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * plain.f64(norm.weight) + plain.f64(
        norm.bias
    )


def formula(attn, x, keep=None, *, turn=lambda t: t, empty=np.nan):
    """timm's attention in float64 loops; `turn` rotates q and k [B, H, N, D]."""
    packed = plain.linear(attn.qkv, plain.f64(x))
    batch, length, _ = packed.shape
    qkv = np.empty((3, batch, attn.num_heads, length, attn.head_dim))
    for index in np.ndindex(3, attn.num_heads):
        which, head = index
        start = (which * attn.num_heads + head) * attn.head_dim
        qkv[which, :, head] = packed[:, :, start : start + attn.head_dim]
    query, key = (turn(normalised(n, t)) for n, t in ((attn.q_norm, qkv[0]), (attn.k_norm, qkv[1])))
    out = plain.merge_heads(plain.attend(query, key, qkv[2], keep, empty=empty))
    return plain.linear(attn.proj, normalised(attn.norm, out))


def built(kind=Attention, **options):
    def make():
        module = kind(DIM, HEADS, **options)
        for norm in (module.q_norm, module.k_norm, module.norm):
            for parameter in norm.parameters():
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        return module

    return draw.seeded(make)


def drawn(batch=2, length=7, width=DIM):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(5))


CONFIGURATIONS = {
    "plain": {},
    "qkv-bias": {"qkv_bias": True},
    "qknorm": {"qk_norm": True, "norm_layer": layer_norm},
    "qknorm-rms": {"qk_norm": True, "norm_layer": RmsNorm},
    "scale-norm": {"scale_norm": True, "norm_layer": layer_norm},
    "head-size": {"attn_head_dim": 6, "dim_out": 10, "proj_bias": False},
}


@pytest.mark.parametrize("fused_attn", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_attention_computes_its_formula(name, fused_attn):
    attn = built(fused_attn=fused_attn, **CONFIGURATIONS[name]).double()
    x = drawn()
    with torch.no_grad():
        np.testing.assert_allclose(attn(x.double()), formula(attn, x), atol=1e-12)


@pytest.mark.parametrize("fused_attn", [False, True])
def test_masks_bool_additive_and_causal(fused_attn):
    attn = built(fused_attn=fused_attn).double()
    x = drawn()
    keep = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    keep[1, 0, 3] = False
    want = formula(attn, x, keep.numpy(), empty=0.0 if fused_attn else np.nan)
    assert np.isnan(want).any() != fused_attn
    causal = formula(attn, x, np.tril(np.ones((7, 7), bool)))
    bias = torch.zeros(2, 1, 7, 7).double().masked_fill(~keep, -torch.inf)
    with torch.no_grad():
        np.testing.assert_allclose(attn(x.double(), attn_mask=keep), want, atol=1e-12)
        np.testing.assert_allclose(attn(x.double(), attn_mask=bias), want, atol=1e-12)
        np.testing.assert_allclose(attn(x.double(), is_causal=True), causal, atol=1e-12)
    if not fused_attn:
        with torch.no_grad():
            np.testing.assert_allclose(attn(x.double(), attn_mask=keep, is_causal=True), causal, atol=1e-12)


@pytest.mark.parametrize("fused_attn", [False, True])
@pytest.mark.parametrize("rotate_half", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_rope_turns_patches_by_position_and_leaves_prefix_tokens(prefix, rotate_half, fused_attn):
    options = {"num_prefix_tokens": prefix, "rotate_half": rotate_half, "fused_attn": fused_attn}
    attn = built(AttentionRope, qk_norm=True, norm_layer=layer_norm, **options).double()
    x = drawn()
    layout, duplicate = ("half", rope.duplicate_half) if rotate_half else ("interleaved", rope.duplicate_interleaved)
    cos, sin = (duplicate(t) for t in rope.cos_sin_tables(7 - prefix, SIZE))

    def turn(t):
        return np.concatenate([t[:, :, :prefix], plain.rotated(t[:, :, prefix:], layout)], axis=2)

    with torch.no_grad():
        got = attn(x.double(), rope=torch.cat((sin, cos), -1))
    np.testing.assert_allclose(got, formula(attn, x, turn=turn), atol=2e-6)


def test_separate_projections_are_the_packed_one_cut_in_three():
    packed = built(AttentionRope)
    separate = AttentionRope(DIM, HEADS, qkv_fused=False).eval()
    state = packed.state_dict()
    for which, name in enumerate(("q_proj", "k_proj", "v_proj")):
        for kind in ("weight", "bias"):
            state[f"{name}.{kind}"] = state[f"qkv.{kind}"][which * DIM : (which + 1) * DIM]
    state = {name: tensor for name, tensor in state.items() if not name.startswith("qkv.")}
    separate.load_state_dict(state, strict=True)
    torch.testing.assert_close(separate(drawn()), packed(drawn()))


def shapes_of(**layers):
    return {name.replace("__", "."): torch.zeros(*shape) for name, shape in layers.items()}


PROJ = {"proj__weight": (DIM, DIM), "proj__bias": (DIM,)}
QKV = {"qkv__weight": (3 * DIM, DIM)}
BIAS = {"qkv__bias": (3 * DIM,)}
QK_NORM = {f"{n}_norm__{k}": (SIZE,) for n in "qk" for k in ("weight", "bias")}


@pytest.mark.parametrize(
    ("module", "layers"),
    [
        (lambda: Attention(DIM, HEADS), QKV | PROJ),
        (lambda: Attention(DIM, HEADS, qkv_bias=True), QKV | BIAS | PROJ),
        (lambda: Attention(DIM, HEADS, qk_norm=True, norm_layer=layer_norm), QKV | QK_NORM | PROJ),
        (
            lambda: Attention(DIM, HEADS, scale_norm=True, norm_layer=RmsNorm, proj_bias=False),
            QKV | {"norm__weight": (DIM,), "proj__weight": (DIM, DIM)},
        ),
        (lambda: AttentionRope(DIM, HEADS), QKV | BIAS | PROJ),
        (
            lambda: AttentionRope(DIM, HEADS, qkv_fused=False, qkv_bias=False),
            {f"{n}_proj__weight": (DIM, DIM) for n in "qkv"} | PROJ,
        ),
    ],
)
def test_an_upstream_state_dict_loads_strictly(module, layers):
    module().load_state_dict(shapes_of(**layers), strict=True)


@pytest.mark.parametrize("rotate_half", [False, True])
def test_patch_rope_is_timms_grid_row_by_row_for_any_number_of_patches(rotate_half):
    table = PatchRope(SIZE, grid_width=3, rotate_half=rotate_half)
    assert dict(table.state_dict()) == {}
    got = table.get_embed(7)
    assert got.shape == (7, 2 * SIZE) and got.dtype == torch.float32
    for p in range(7):
        row, column = divmod(p, 3)
        angles = [place * 10000.0 ** (-i / 2) for place in (row, column) for i in range(2)]
        wide = np.array(angles * 2) if rotate_half else np.repeat(angles, 2)
        np.testing.assert_allclose(got[p], np.concatenate([np.sin(wide), np.cos(wide)]), atol=1e-6)
    torch.testing.assert_close(table.get_embed(4), got[:4])


def test_half_precision_at_length_512_stays_within_its_rounding_because_the_bands_stay_float32():
    # One patch a row: positions go up to 511, and eight bands, most of which half precision does not hold.
    module = draw.seeded(lambda: PatchAttention(96, HEADS, grid_width=1)).half()
    assert module.rope.bands.dtype == torch.float32
    x = drawn(length=512, width=96).half() * 4

    def error(candidate):
        got = candidate(x).double()
        return ((got - want).norm() / want.norm()).item()

    with torch.no_grad():
        want = copy.deepcopy(module).double()(x.double())
        kept = error(module)
        rounded = copy.deepcopy(module)
        rounded.rope.bands = rounded.rope.bands.half()  # what a plain buffer would become
        lost = error(rounded)
    assert kept < 4 * 2.0**-11
    assert lost > 5 * kept


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Attention(DIM, 5), "embedding size 24 cannot be split into 5 heads"),
        (lambda: AttentionRope(DIM, 0), "embedding size 24 cannot be split into 0 heads"),
        (lambda: Attention(DIM, HEADS, qk_norm=True), "need a normalisation: pass norm_layer"),
        (lambda: AttentionRope(DIM, HEADS, scale_norm=True), "need a normalisation: pass norm_layer"),
        (lambda: PatchRope(6, 3), "6 is not divisible by 4"),
    ],
)
def test_what_cannot_be_built_is_refused(call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", [form.name for form in FORMS])
def test_the_form_exports_and_runs_at_other_shapes(name, exporter):
    operators = assert_exports(registry.get(name), exporter)
    native = exporter == "dynamo" and name == "timm-sdpa"
    assert operators["Attention"] == native and operators["Softmax"] == (not native)
