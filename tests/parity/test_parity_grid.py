"""Which cases are run: the grid of every form, and what is made of a user's own example inputs."""

import pytest
import torch
from torch import nn

from export.capture.contract import Source
from export.model.form import Form
from export.model.registry import form_names, get
from export.parity import check_stages, form_cases, source_cases
from export.parity.resize import example_cases, padded

CORNERS = {"typical", "one-token", "one-batch", "profile-max", "peaked", "small-inputs", "large-logits"}


class Masked(nn.Module):
    def forward(self, x, keep, bias, positions):
        scores = x @ x.mT + bias + positions * 0.01
        return torch.softmax(scores.masked_fill(~keep[:, None], float("-inf")), dim=-1) @ x


def source(**changes) -> Source:
    length = 6
    upper = torch.full((length, length), float("-inf")).triu(1)
    inputs = {
        "x": torch.randn(2, length, 4),
        "keep": torch.ones(2, length, dtype=torch.bool),
        "bias": upper,
        "positions": torch.arange(length),
    }
    dynamic = {
        "x": {0: "batch", 1: "length"},
        "keep": {0: "batch", 1: "length"},
        "bias": {0: "length", 1: "length"},
        "positions": {0: "length"},
    }
    arguments = {"name": "mine", "module": Masked().eval(), "inputs": inputs, "dynamic": dynamic} | changes
    return Source(**arguments)


@pytest.mark.parametrize("name", form_names())
def test_every_form_is_taken_to_its_corners(name):
    form = get(name)
    cases = {case.name: case for case in form_cases(form, "fp16")}
    assert set(cases) >= CORNERS
    wanted = {"right": "right-padding", "left": "left-padding", "full-row": "fully-masked-row"}
    assert {wanted[p] for p in form.padding} <= set(cases)
    assert ("cross-lengths" in cases) == (sum("batch" not in d for d in form.dims) > 1)

    def sizes(case_name: str, dim: str) -> set[int]:
        inputs = cases[case_name].inputs
        return {inputs[i].shape[a] for i, axes in form.dynamic.items() for a, d in axes.items() if d == dim}

    for dim, (low, _, high) in form.dims.items():
        assert sizes("profile-max", dim) == {high}
        if dim == "batch":
            assert sizes("one-batch", dim) == {max(1, low)}
        else:
            assert sizes("one-token", dim) == {max(1, low)}


def test_large_logits_saturate_and_stay_in_range():
    form = get("tutorial-mha")
    cases = {case.name: case for case in form_cases(form, "fp16")}
    loudest = cases["large-logits"].inputs
    assert max(x.abs().max() for x in loudest.values() if x.is_floating_point()) > 20

    class Overflowing(nn.Module):
        def forward(self, x):
            return torch.softmax((x * 300) @ x.mT, dim=-1) @ x

    small = Form("f", "", "", Overflowing, lambda c: {"x": torch.ones(2, 4, 4) * c.magnitude}, {}, {"batch": (1, 2, 2)})
    assert {"large-logits"} & {c.name for c in form_cases(small, "fp32")}
    quieter = {c.name: c for c in form_cases(small, "fp16")}
    assert quieter["large-logits"].inputs["x"].max() == 3
    report = check_stages(source(form=small, module=Overflowing()), None, {}, dtype="fp16")
    assert report.passed


def test_a_users_inputs_are_resized_and_keep_their_meaning():
    torch.manual_seed(0)
    mine = source(dims={"batch": (1, 2, 4), "length": (1, 6, 16)})
    cases = {case.name: case.inputs for case in example_cases(mine)}
    assert list(cases)[:2] == ["example", "redrawn"]
    assert torch.equal(cases["example"]["x"], mine.inputs["x"])
    assert not torch.equal(cases["redrawn"]["x"], mine.inputs["x"])
    shapes = {name: tuple(inputs["x"].shape) for name, inputs in cases.items()}
    assert shapes["one-batch"] == (1, 6, 4)
    assert shapes["one-token"] == (2, 1, 4)
    assert shapes["odd"] == (3, 5, 4)
    assert shapes["profile-max"] == (4, 16, 4)
    for inputs in cases.values():
        length = min(inputs["x"].shape[1], 6)
        assert torch.equal(inputs["positions"][:length], torch.arange(length))
        assert inputs["positions"].max() <= 5
    assert (cases["right-padding"]["keep"][0, -2:] == 0).all()
    assert cases["right-padding"]["keep"].sum() == 10
    assert (cases["left-padding"]["keep"][0, :2] == 0).all()
    assert not cases["fully-masked-row"]["keep"][-1].any()
    assert cases["fully-masked-row"]["keep"][0].all()


def test_a_users_cases_run_and_pass():
    torch.manual_seed(0)
    mine = source()
    report = check_stages(mine, None, {"again": mine.module}, dtype="fp32")
    names = {row.case for row in report.rows}
    assert {"example", "one-batch", "one-token", "odd", "right-padding", "fully-masked-row", "large-logits"} <= names
    assert report.passed, report.failures
    assert "0 not run" in report.summary()


def test_nothing_is_resized_where_nothing_is_dynamic():
    fixed = Source("fixed", nn.Identity(), {"input": torch.randn(2, 3)}, dynamic={})
    assert [case.name for case in example_cases(fixed)] == ["example", "redrawn"]
    assert [case.name for case in source_cases(fixed, "fp32")] == ["example", "redrawn", "large-logits"]


def test_a_mask_that_hides_with_true_is_padded_with_true():
    hides = {"mask": torch.zeros(2, 6, dtype=torch.bool)}
    assert padded(hides, hides, "right")["mask"].tolist() == [[False] * 4 + [True] * 2, [False] * 6]
    causal = {"mask": torch.ones(4, 4, dtype=torch.bool).tril()}
    result = padded(causal, causal, "left")["mask"]
    assert result[1:].equal(causal["mask"][1:])
    assert not result[0, 0]


def test_integers_of_ones_are_a_mask_and_other_integers_are_not():
    mask = {"mask": torch.ones(1, 6, dtype=torch.int64), "ids": torch.zeros(1, 6, dtype=torch.int64)}
    result = padded(mask, mask, "right")
    assert result["mask"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert result["ids"].equal(mask["ids"])
    tokens = {"ids": torch.tensor([[0, 1, 7]])}
    assert padded(tokens, tokens, "right")["ids"].equal(tokens["ids"])


def test_an_additive_mask_is_padded_with_its_own_fill():
    example = {"mask": torch.tensor([[0.0, -1e9, 0.0, 0.0]])}
    assert padded(example, example, "right")["mask"].tolist() == [[0.0, 0.0, 0.0, -1e9]]
    plain = {"x": torch.tensor([[0.5, -2.0]])}
    assert padded(plain, plain, "right")["x"].equal(plain["x"])
