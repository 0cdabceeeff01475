import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import export, outputs_of, run, session

from engines.errors import UsageError
from export.model import rope
from export.model.checks import head_size, require_length
from export.model.dtypes import upcast

ROTATIONS = {
    "half": (rope.duplicate_half, rope.rotate_halves),
    "interleaved": (rope.duplicate_interleaved, rope.rotate_pairs),
    "strided": (rope.duplicate_interleaved, rope.rotate_pairs_strided),
}


def vectors(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("layout", ROTATIONS)
@pytest.mark.parametrize("rotary_dim", [8, 4, 2])
def test_each_layout_turns_each_pair_by_its_angle_and_leaves_the_rest(layout, rotary_dim):
    duplicate, rotate = ROTATIONS[layout]
    x = vectors(2, 3, 6, 8)
    cos, sin = rope.cos_sin_tables(6, rotary_dim)
    width = rotary_dim if rotary_dim < 8 else None
    got = rope.apply_rotary(x, duplicate(cos), duplicate(sin), rotate=rotate, rotary_dim=width)
    want = plain.rotated(x.numpy(), "half" if layout == "half" else "interleaved", rotary_dim)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert torch.equal(got[..., rotary_dim:], x[..., rotary_dim:])


def test_complex_product_in_real_arithmetic_is_the_interleaved_rotation():
    x = vectors(2, 6, 8)
    cos, sin = rope.cos_sin_tables(6, 8)
    np.testing.assert_allclose(rope.apply_rotary_real(x, cos, sin), plain.rotated(x.numpy(), "interleaved"), atol=1e-6)
    numbers = torch.view_as_complex(x.reshape(2, 6, 4, 2)) * torch.polar(
        torch.ones(6, 4).double(), rope.angles(torch.arange(6), rope.inverse_frequencies(8)).double()
    )
    np.testing.assert_allclose(rope.apply_rotary_real(x, cos, sin), torch.view_as_real(numbers).flatten(-2), atol=1e-6)


def test_a_rotated_score_depends_on_the_distance_only():
    q, k = vectors(2, 1, 8)
    cos, sin = (rope.duplicate_half(t) for t in rope.cos_sin_tables(40, 8))
    q, k = (rope.apply_rotary(v.expand(40, 8), cos, sin, rotate=rope.rotate_halves) for v in (q, k))
    scores = q @ k.T
    for distance in (-5, 0, 7):
        along = scores.diagonal(distance)
        np.testing.assert_allclose(along, along[0].expand_as(along), atol=1e-5)


def test_xpos_follows_its_formula_and_decays_scores_by_distance():
    size, length = 8, 21
    base = rope.xpos_base(size)
    scale = rope.xpos_scale(torch.arange(length), length // 2, base)
    for t in range(length):
        for i in range(size // 2):
            want = ((2 * i + 0.4 * size) / (1.4 * size)) ** ((t - length // 2) / 512)
            assert scale[t, 2 * i] == scale[t, 2 * i + 1] == pytest.approx(want, rel=1e-6)
    x = vectors(length, size)
    cos, sin = (rope.duplicate_interleaved(t) for t in rope.cos_sin_tables(length, size))
    scaled = rope.apply_rotary(x, cos, sin, rotate=rope.rotate_pairs, scale=scale)
    np.testing.assert_allclose(scaled, plain.rotated(x.numpy(), "interleaved") * scale.numpy(), atol=1e-6)


def test_axial_embedding_is_sine_first_then_rows_before_columns():
    bands = rope.inverse_frequencies(4)  # two bands, head size 8
    rows, columns = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 2, 1, 1])
    for duplicate, order in (
        (rope.duplicate_interleaved, lambda r, c: [r[0], r[0], r[1], r[1], c[0], c[0], c[1], c[1]]),
        (rope.duplicate_half, lambda r, c: [r[0], r[1], c[0], c[1]] * 2),
    ):
        got = rope.axial_embedding(rows, columns, bands, duplicate=duplicate)
        for p in range(4):
            angles = order(*([int(place[p]) * float(band) for band in bands] for place in (rows, columns)))
            np.testing.assert_allclose(got[p], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)


@pytest.mark.parametrize("rotate", [rope.rotate_pairs_strided, rope.rotate_halves])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_prefix_tokens_are_not_rotated_and_patches_start_at_position_zero(rotate, prefix):
    x = vectors(2, 3, prefix + 4, 8)
    layout, duplicate = (
        ("half", rope.duplicate_half) if rotate is rope.rotate_halves else ("interleaved", rope.duplicate_interleaved)
    )
    cos, sin = (duplicate(t) for t in rope.cos_sin_tables(4, 8))
    got = rope.apply_to_patches(x, torch.cat((sin, cos), -1), prefix, rotate=rotate)
    assert torch.equal(got[:, :, :prefix], x[:, :, :prefix])
    np.testing.assert_allclose(got[:, :, prefix:], plain.rotated(x[:, :, prefix:].numpy(), layout), atol=1e-6)


class Tables(rope.Float32Buffers):
    float32_buffers = ("table", "absent")

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(512) * rope.inverse_frequencies(2))
        self.register_buffer("absent", None)
        self.register_buffer("other", torch.ones(1))


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_tables_stay_float32_bit_for_bit_whatever_the_model_becomes(convert):
    model = torch.nn.Sequential(Tables(), torch.nn.Linear(2, 2))
    before = model[0].table.clone()
    getattr(model, convert)()
    assert model[0].table.dtype == torch.float32 and torch.equal(model[0].table, before)
    assert (
        model[0].other.dtype
        == model[1].weight.dtype
        == getattr(torch, {"half": "float16", "double": "float64"}.get(convert, convert))
    )
    assert model.to("meta")[0].table.device.type == "meta"


@pytest.mark.parametrize(("dtype", "wide"), [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_rotation_happens_in_at_least_float32_and_returns_to_the_inputs_dtype(dtype, wide):
    x = vectors(4, 8, dtype=getattr(torch, dtype))
    assert upcast(x).dtype == getattr(torch, wide)
    cos, sin = (rope.duplicate_half(t) for t in rope.cos_sin_tables(4, 8))
    got = rope.apply_rotary(x, cos, sin, rotate=rope.rotate_halves)
    want = rope.apply_rotary(x.double(), cos, sin, rotate=rope.rotate_halves).to(x.dtype)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got, want)
    assert rope.apply_rotary_real(x, cos[:, :4], sin[:, :4]).dtype == x.dtype


class EveryRotation(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", rope.inverse_frequencies(8))

    def forward(self, x):
        length = x.shape[1]
        positions = torch.arange(length)
        table = rope.angles(positions, self.inv_freq)
        scale = rope.xpos_scale(positions, length // 2, rope.xpos_base(8))
        outputs = [rope.apply_rotary_real(x, table.cos(), table.sin())]
        for duplicate, rotate in ROTATIONS.values():
            wide = duplicate(table)
            outputs.append(rope.apply_rotary(x, wide.cos(), wide.sin(), rotate=rotate))
            cos, sin = wide.cos()[:, :6], wide.sin()[:, :6]
            outputs.append(rope.apply_rotary(x, cos, sin, rotate=rotate, rotary_dim=6, scale=scale[:, :6]))
        return tuple(outputs)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_every_rotation_exports_with_dynamic_batch_and_length(exporter):
    model = export(EveryRotation().eval(), {"x": torch.randn(2, 7, 8)}, {"x": {0: "batch", 1: "length"}}, exporter)
    runtime = session(model)
    for shape in ((1, 1, 8), (3, 11, 8), (2, 64, 8)):
        inputs = {"x": vectors(*shape, dtype=torch.float32)}
        for got, want in zip(run(runtime, inputs), outputs_of(EveryRotation(), inputs), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("make", [rope.inverse_frequencies, rope.xpos_base, lambda d: rope.cos_sin_tables(4, d)])
@pytest.mark.parametrize("size", [7, 0])
def test_an_odd_or_empty_head_cannot_be_paired(make, size):
    with pytest.raises(UsageError, match=f"RoPE rotates channels in pairs, but the head size is {size}. Choose"):
        make(size)


def test_checks_say_what_does_not_fit():
    assert head_size(96, 4) == 24
    for heads in (5, 0):
        with pytest.raises(UsageError, match=f"embedding size 96 cannot be split into {heads} heads"):
            head_size(96, heads)
    require_length(8, 8, "the table")
    with pytest.raises(UsageError, match=r"9 positions, but the table holds 8\. Build"):
        require_length(9, 8, "the table")
