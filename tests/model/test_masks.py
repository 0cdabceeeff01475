import numpy as np
import pytest
import torch
from exporting import export, outputs_of, run, session

from engines.errors import UsageError
from export.model import draw, masks
from export.model.form import Case


def table(rows: int, columns: int, keeps) -> np.ndarray:
    return np.array([[bool(keeps(i, j)) for j in range(columns)] for i in range(rows)])


@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_masks_are_what_their_formula_says_for_every_query_and_key(size):
    assert np.array_equal(masks.subsequent_mask(size), table(size, size, lambda i, j: j <= i))
    assert np.array_equal(masks.causal_mask(size, size + 3), table(size, size + 3, lambda i, j: j <= i))
    lower_right = masks.causal_mask(size, size + 3, "lower-right")
    assert np.array_equal(lower_right, table(size, size + 3, lambda i, j: j <= i + 3))
    assert np.array_equal(masks.causal_mask(size, size, "lower-right"), masks.subsequent_mask(size))
    for window in (1, 3, 100):
        want = table(size, size, lambda i, j, w=window: i - w < j <= i)
        assert np.array_equal(masks.sliding_window_mask(size, window), want)


@pytest.mark.parametrize("left", [-1, 0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
def test_chunk_mask_covers_the_own_chunk_and_the_allowed_ones_before(chunk, left):
    want = table(11, 11, lambda i, j: j < (i // chunk + 1) * chunk and (left < 0 or j >= (i // chunk - left) * chunk))
    assert np.array_equal(masks.subsequent_chunk_mask(11, chunk, left), want)


def test_chunk_mask_follows_the_upstream_example():
    assert masks.subsequent_chunk_mask(4, 2).int().tolist() == [[1, 1, 0, 0]] * 2 + [[1, 1, 1, 1]] * 2


def test_pad_mask_is_true_where_padded_and_keep_is_its_complement():
    lengths = torch.tensor([5, 3, 0])
    assert masks.make_pad_mask(lengths, 5).int().tolist() == [[0] * 5, [0, 0, 0, 1, 1], [1] * 5]
    assert torch.equal(masks.keep_from_lengths(lengths, 5), ~masks.make_pad_mask(lengths, 5))


def test_empty_rows_are_opened_and_no_other():
    keep = torch.tensor([[[True, False], [False, False]], [[False, True], [True, True]]])
    want = keep.clone()
    for row in want.flatten(0, 1):
        if not row.any():
            row[:] = True
    assert torch.equal(masks.open_empty_rows(keep), want)


def test_optional_chunk_mask_combines_padding_and_chunks_then_opens_empty_rows():
    keep = masks.keep_from_lengths(torch.tensor([6, 2, 0]), 6).unsqueeze(1)
    got = masks.add_optional_chunk_mask(keep, 2, 0)
    want = keep.numpy() & table(6, 6, lambda i, j: i // 2 == j // 2)
    want[~want.any(-1)] = True
    assert np.array_equal(got, want)
    assert torch.equal(masks.add_optional_chunk_mask(keep[:2], 0), keep[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bias_is_zero_where_kept_and_finite_with_weight_zero_where_not(dtype):
    keep = torch.tensor([[True, False], [False, False]])
    bias = masks.mask_to_bias(keep, dtype)
    assert bias.dtype == dtype and torch.isfinite(bias).all()
    assert bias[0, 0] == 0
    scores = torch.full((2, 2), -20.0, dtype=dtype) + bias
    assert torch.isfinite(scores).all()
    weights = scores.softmax(-1)
    assert weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]


class EveryMask(torch.nn.Module):
    def forward(self, x, lengths, keep):
        size = x.shape[1]
        return (
            masks.make_pad_mask(lengths, size),
            masks.keep_from_lengths(lengths, size),
            masks.key_padding(keep),
            masks.subsequent_mask(size),
            masks.causal_mask(size, size + 2, "lower-right"),
            masks.sliding_window_mask(size, 3),
            masks.subsequent_chunk_mask(size, 3, 1),
            masks.add_optional_chunk_mask(keep.unsqueeze(1), 4),
            masks.mask_to_bias(keep, torch.float32),
        )


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_every_mask_exports_with_dynamic_batch_and_length(exporter):
    def inputs(batch, length):
        rng = torch.Generator().manual_seed(batch)
        return {
            "x": torch.zeros(batch, length, 4),
            "lengths": torch.randint(0, length + 1, (batch,), generator=rng),
            "keep": torch.rand(batch, length, generator=rng) > 0.7,
        }

    dynamic = {"x": {0: "batch", 1: "length"}, "lengths": {0: "batch"}, "keep": {0: "batch", 1: "length"}}
    model = export(EveryMask().eval(), inputs(2, 7), dynamic, exporter)
    assert not any(node.op_type in {"Loop", "If", "NonZero"} for node in model.graph.node)
    runtime = session(model)
    wanted = [value.name for value in runtime.get_inputs()]
    for shape in ((1, 1), (3, 11), (2, 4)):
        drawn = inputs(*shape)
        got = run(runtime, {name: drawn[name] for name in wanted})
        for a, b in zip(got, outputs_of(EveryMask(), drawn), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_drawn_padding_hides_some_keys_and_never_all(padding):
    keep = draw.keep_mask(padding, 5, 9, draw.generator(Case("c", {})))
    assert keep.any(-1).all() and not keep[0].all()
    edge = keep[:, 0] if padding == "right" else keep[:, -1]
    assert edge.all()
    steps = keep.int().diff(dim=-1)
    assert (steps <= 0).all() if padding == "right" else (steps >= 0).all()


def test_drawn_full_row_hides_exactly_one_batch_row():
    keep = draw.keep_mask("full-row", 3, 9, draw.generator(Case("c", {})))
    assert keep.any(-1).tolist() == [True, True, False]
    assert draw.keep_mask("none", 3, 9, draw.generator(Case("c", {}))).all()


def test_an_unknown_padding_is_refused_by_name():
    with pytest.raises(UsageError, match=r"'middle' is unknown\. Use one of: none, right"):
        draw.keep_mask("middle", 1, 4, draw.generator(Case("c", {})))
