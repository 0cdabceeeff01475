import copy

import numpy as np
import plain_attention as plain
import pytest
import torch
from exporting import assert_exports

from engines.errors import UsageError
from export.model import draw, registry, rope
from export.model.dit import FORMS, Attention, JointAttentionBlock, RotaryEmbedding, SelfAttentionBlock

DIM, HEADS, SIZE = 20, 3, 8


def drawn(batch=3, length=7, context=4, padding="right"):
    rng = torch.Generator().manual_seed(5)
    x, c = torch.randn(batch, length, DIM, generator=rng), torch.randn(batch, context, DIM, generator=rng)
    return x, c, draw.keep_mask(padding, batch, length, rng)


def scale_at(position, length, size):
    return np.repeat(
        [((2 * i + 0.4 * size) / (1.4 * size)) ** ((position - length // 2) / 512) for i in range(size // 2)], 2
    )


def head_zero_rotated(merged, *, xpos=0):
    """[B, N, H*D] with the first D channels turned (and scaled by xPos to the power `xpos`), the others as they are."""
    out = plain.rotated(merged, "interleaved", SIZE)
    if xpos:
        for n in range(merged.shape[1]):
            out[:, n, :SIZE] *= scale_at(n, merged.shape[1], SIZE) ** xpos
    return out


def streams(attn, x, suffix="", *, xpos=False):
    """Merged query, key and value of one stream, rotated from position 0."""
    q, k, v = (plain.linear(getattr(attn, f"to_{name}{suffix}"), plain.f64(x)) for name in "qkv")
    return head_zero_rotated(q, xpos=int(xpos)), head_zero_rotated(k, xpos=-int(xpos)), v


def attended(parts, keep):
    return plain.merge_heads(plain.attend(*(plain.split_heads(p, HEADS) for p in parts), keep, empty=0.0))


@pytest.mark.parametrize("xpos", [False, True])
@pytest.mark.parametrize("padding", ["none", "right", "left", "full-row"])
def test_self_attention_computes_its_formula_and_zeroes_padded_rows(padding, xpos):
    block = draw.seeded(lambda: SelfAttentionBlock(DIM, HEADS, SIZE, use_xpos=xpos)).double()
    x, _, mask = drawn(padding=padding)
    want = plain.linear(block.attn.to_out[0], attended(streams(block.attn, x, xpos=xpos), mask[:, None, None].numpy()))
    want[~mask.numpy()] = 0
    with torch.no_grad():
        got = block(x.double(), mask)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert (got[~mask] == 0).all()


def test_xpos_is_not_lost_in_the_noise():
    x, _, mask = drawn(length=40)
    plainly, scaled = (
        draw.seeded(lambda u=use: SelfAttentionBlock(DIM, HEADS, SIZE, use_xpos=u)) for use in (False, True)
    )
    scaled.rotary_embed.scale_base = plainly.rotary_embed.scale_base = 8.0
    assert (plainly(x, mask) - scaled(x, mask)).abs().max() > 1e-3


def test_a_4d_mask_is_used_as_it_is_and_its_last_query_says_which_rows_are_padding():
    block = draw.seeded(lambda: SelfAttentionBlock(DIM, HEADS, SIZE)).double()
    x, _, _ = drawn()
    mask = torch.rand(3, 1, 7, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    want = plain.linear(block.attn.to_out[0], attended(streams(block.attn, x), mask.numpy()))
    for b in range(3):
        for n in range(7):
            if not mask[b, 0, 6, n]:
                want[b, n] = 0
    with torch.no_grad():
        np.testing.assert_allclose(block(x.double(), mask), want, atol=2e-6)


def test_without_a_mask_every_key_is_kept_and_no_row_zeroed():
    block = draw.seeded(lambda: SelfAttentionBlock(DIM, HEADS, SIZE))
    x, _, mask = drawn(padding="none")
    torch.testing.assert_close(block(x, None), block(x, mask))


def test_only_head_zero_rotates():
    attn = draw.seeded(lambda: Attention(HEADS * SIZE, HEADS, SIZE))
    with torch.no_grad():
        attn.to_out[0].weight.copy_(torch.eye(HEADS * SIZE))  # the heads stay readable in the output
    x = torch.randn(2, 9, HEADS * SIZE, generator=torch.Generator().manual_seed(0))
    turned = attn(x, rope=RotaryEmbedding(SIZE).forward_from_seq_len(9))
    still = attn(x)
    torch.testing.assert_close(turned[..., SIZE:], still[..., SIZE:])
    assert (turned[..., :SIZE] - still[..., :SIZE]).abs().max() > 1e-2


@pytest.mark.parametrize("context_pre_only", [False, True])
@pytest.mark.parametrize("padding", ["none", "right", "full-row"])
def test_joint_attention_concatenates_x_before_c_and_masks_x_alone(padding, context_pre_only):
    block = draw.seeded(lambda: JointAttentionBlock(DIM, HEADS, SIZE, context_pre_only)).double()
    x, c, mask = drawn(padding=padding)
    parts = [
        np.concatenate(pair, axis=1) for pair in zip(streams(block.attn, x), streams(block.attn, c, "_c"), strict=True)
    ]
    keep = np.concatenate([mask.numpy(), np.ones((3, 4), bool)], axis=1)[:, None, None]
    out = attended(parts, keep)
    want_x = plain.linear(block.attn.to_out[0], out[:, :7])
    want_x[~mask.numpy()] = 0
    want_c = out[:, 7:] if context_pre_only else plain.linear(block.attn.to_out_c, out[:, 7:])
    with torch.no_grad():
        got_x, got_c = block(x.double(), c.double(), mask)
    np.testing.assert_allclose(got_x, want_x, atol=2e-6)
    np.testing.assert_allclose(got_c, want_c, atol=2e-6)


def upstream_state(dim, inner, *, joint, pre_only=None):
    """The names and shapes of a CosyVoice attention's state_dict, as read from its source."""
    layers = {"to_q": (inner, dim), "to_k": (inner, dim), "to_v": (inner, dim), "to_out.0": (dim, inner)}
    if joint:
        layers |= {"to_k_c": (inner, dim), "to_v_c": (inner, dim)}
        layers |= {} if pre_only is None else {"to_q_c": (inner, dim)}
        layers |= {"to_out_c": (dim, inner)} if pre_only is False else {}
    state = {f"{name}.weight": torch.randn(*shape) for name, shape in layers.items()}
    return state | {f"{name}.bias": torch.randn(shape[0]) for name, shape in layers.items()}


@pytest.mark.parametrize(("joint", "pre_only"), [(False, None), (True, None), (True, False), (True, True)])
def test_an_upstream_state_dict_loads_strictly(joint, pre_only):
    attn = Attention(DIM, HEADS, SIZE, context_dim=DIM if joint else None, context_pre_only=pre_only)
    attn.load_state_dict(upstream_state(DIM, HEADS * SIZE, joint=joint, pre_only=pre_only), strict=True)


def test_the_rotary_buffers_have_upstreams_names_and_stay_float32():
    assert list(RotaryEmbedding(8).state_dict()) == ["inv_freq"]
    table = RotaryEmbedding(8, use_xpos=True).half()
    assert list(table.state_dict()) == ["inv_freq", "scale"]
    assert table.inv_freq.dtype == table.scale.dtype == torch.float32
    torch.testing.assert_close(table.inv_freq, 10000 ** (-torch.arange(0, 8, 2) / 8))
    freqs, scale = table.forward_from_seq_len(5)
    assert freqs.shape == scale.shape == (1, 5, 8)
    # Where the scale is 1 cancels in every score, so only the table can tell: the middle, as upstream has it.
    assert (scale[0, 2] == 1).all() and (scale[0, 1] != 1).all()


def test_half_precision_at_length_512_stays_within_its_rounding_because_the_table_stays_float32():
    block = draw.seeded(lambda: SelfAttentionBlock(DIM, HEADS, SIZE, use_xpos=True)).half()
    x, _, mask = drawn(batch=2, length=512)
    x = x.half() * 4  # large enough for the positions to matter

    def error(module):
        got = module(x, mask).double()
        return ((got - want).norm() / want.norm()).item()

    with torch.no_grad():
        want = copy.deepcopy(block).double()(x.double(), mask)
        kept = error(block)
        rounded = copy.deepcopy(block)
        rounded.rotary_embed.inv_freq = rounded.rotary_embed.inv_freq.half()  # what a plain buffer would become
        lost = error(rounded)
    assert kept < 4 * 2.0**-11
    assert lost > 5 * kept


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda a, j, x, c: a(x, mask=torch.ones(3, 7, 7).bool()), r"rank 2 .* or 4 .*, not 3 .*mask\.unsqueeze\(1\)"),
        (lambda a, j, x, c: a(x, c=c), "no parameters for a context's queries.*context_pre_only"),
        (
            lambda a, j, x, c: j(x, c=c, mask=torch.ones(3, 1, 7, 7).bool()),
            r"2-D mask .* not one of rank 4",
        ),
        (
            lambda a, j, x, c: a(x, rope=RotaryEmbedding(6).forward_from_seq_len(7)),
            "table is 6 channels wide.*head size is 8",
        ),
        (lambda a, j, x, c: RotaryEmbedding(7), "pairs, but the head size is 7"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, sentence):
    x, c, _ = drawn()
    joint = Attention(DIM, HEADS, SIZE, context_dim=DIM, context_pre_only=False)
    with pytest.raises(UsageError, match=sentence):
        call(Attention(DIM, HEADS, SIZE), joint, x, c)


def test_one_head_rotates_whole():
    attn = draw.seeded(lambda: Attention(DIM, 1, SIZE))
    x, _, _ = drawn()
    query = attn.to_q(x)
    table = RotaryEmbedding(SIZE).forward_from_seq_len(7)
    got, _ = attn._rotated(query, query, table)
    np.testing.assert_allclose(got.detach(), plain.rotated(plain.f64(query), "interleaved"), atol=1e-5)
    assert rope.rotate_pairs(query).shape == query.shape


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", [form.name for form in FORMS])
def test_the_form_exports_and_runs_at_other_shapes(name, exporter):
    operators = assert_exports(registry.get(name), exporter)
    assert operators["Attention" if exporter == "dynamo" else "Softmax"] == 1
