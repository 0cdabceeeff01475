"""Dynamic axes: found by the rule, or read from the user's dynamic_shapes."""

import pytest
import torch
from foreign_modules import CrossAttention, Keywords, rand
from torch import nn
from torch.export import Dim

from export.capture import axes, capture, of_module
from export.capture.inputs import bind
from export.capture.layout import Layout, substitute, symbols
from export.errors import UsageError


class Double(nn.Module):
    """Needs b twice as long as a."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, a], 1) + b


class Silent(nn.Module):
    """A tie that no guard of torch.export shows: the sizes meet in a sum of lengths only."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.shape[1] != b.shape[1]:
            raise ValueError("lengths differ")
        return a.sum(1) + b.sum(1)


def found(module: nn.Module, inputs) -> axes.Found:
    module = module.eval()
    return axes.find(module, bind(module, inputs, "test"))


def test_batch_first_length_second_and_what_follows_them() -> None:
    mask = torch.ones(2, 7, dtype=torch.bool)
    made = found(Keywords(), {"x": rand(2, 7, 16), "mask": mask, "bias": rand(7, 7)})
    assert made.dynamic == {
        "x": {0: "batch", 1: "length"},
        "mask": {0: "batch", 1: "length"},
        "bias": {0: "length", 1: "length"},
    }
    assert made.notes == [] and made.dims == {}


def test_the_third_axis_is_the_length_where_heads_are_fixed() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, q):
            return (q @ q.transpose(-1, -2) * self.slope).softmax(-1) @ q

    assert found(Heads(), (rand(2, 4, 7, 8),)).dynamic == {"q": {0: "batch", 2: "length"}}


def test_a_vector_is_a_batch_or_a_length_as_the_module_uses_it() -> None:
    class Vector(nn.Module):
        def forward(self, x, positions, scales):
            return x * positions[None, :, None] * scales[:, None, None]

    made = found(Vector(), (rand(2, 7, 4), torch.arange(7), rand(2)))
    assert made.dynamic == {"x": {0: "batch", 1: "length"}, "positions": {0: "length"}, "scales": {0: "batch"}}


def test_a_batch_of_one_grows_and_a_batch_that_must_be_one_is_noted() -> None:
    grown = found(nn.Linear(4, 4), (rand(1, 7, 4),))
    assert grown.inputs["input"].shape == (2, 7, 4) and grown.dynamic == {"input": {0: "batch", 1: "length"}}

    class Masked(nn.Module):  # the mask's second axis stands for heads, whatever the length is
        def forward(self, x, mask):
            return (x[:, None] @ x[:, None].transpose(2, 3) + mask).expand(-1, 2, -1, -1)

    step = found(Masked(), (rand(1, 1, 4), rand(1, 1, 1, 1)))
    assert step.dynamic["x"] == {0: "batch", 1: "length"} and step.inputs["mask"].shape[:2] == (2, 1)

    class Single(nn.Module):
        def forward(self, x):
            return x.squeeze(0) @ x.squeeze(0).T

    made = found(Single(), (rand(1, 7, 4),))
    assert made.inputs["x"].shape == (1, 7, 4) and made.dynamic == {"x": {1: "length"}}
    assert any("batch is 1 in the example inputs and stays 1" in note for note in made.notes)


class Patches(nn.Module):
    """A vision model's first layers: rows that fill no patch are dropped, and the positions are as many as patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 4, 8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patch(image).flatten(2).transpose(1, 2) + self.positions


def test_the_height_of_an_image_is_no_length() -> None:
    made = found(Patches(), (rand(2, 3, 8, 8),))
    assert made.dynamic == {"image": {0: "batch"}}
    assert any(note.startswith("axis 2 of `image` stays 8") for note in made.notes)


def test_a_limit_becomes_the_largest_size() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((12, 12), float("-inf")).triu(1))

        def forward(self, x):
            length = x.shape[1]
            return (x @ x.transpose(1, 2) + self.mask[:length, :length]).softmax(-1) @ x

    assert found(Causal(), (rand(2, 7, 4),)).dims == {"length": (1, 7, 12)}


def test_arithmetic_between_axes_and_ties_that_only_a_run_shows() -> None:
    made = found(Double(), (rand(2, 5, 4), rand(2, 10, 4)))
    assert made.dynamic == {"a": {0: "batch", 1: "length"}, "b": {0: "batch", 1: "2*length"}}
    tied = found(Silent(), (rand(2, 5, 4), rand(2, 5, 4)))
    assert tied.dynamic == {"a": {0: "batch", 1: "length"}, "b": {0: "batch", 1: "length"}}


def test_where_torch_export_fails_axes_of_one_size_go_together() -> None:
    class Branch(nn.Module):
        def forward(self, x, mask):
            return x if mask.all() else x * mask[..., None]

    made = found(Branch(), (rand(2, 7, 4), torch.ones(2, 7, dtype=torch.bool)))
    assert made.dynamic == {"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    assert any(note.startswith("torch.export fails on the module") for note in made.notes)


def test_names_given_as_dims_or_text_reach_the_graph() -> None:
    query, memory = rand(2, 5, 16), rand(2, 6, 16)
    length = Dim("frames", min=2, max=64)
    shapes = {"query": {0: "rows", 1: length}, "key": ("rows", "memory", None), "value": {0: "rows", 1: "memory"}}
    source = of_module("cross", CrossAttention(), (query, memory, memory), shapes)
    assert source.dims == {"frames": (2, 5, 64)} and source.warnings == ()
    for exporter in ("dynamo", "torchscript"):
        captured = capture(source, exporter=exporter)
        assert [spec.shape for spec in captured.inputs] == [("rows", "frames", 16), *[("rows", "memory", 16)] * 2]
        assert [d if isinstance(d, int) else d.value for d in captured.model.graph.outputs[0].shape] == [
            "rows",
            "frames",
            16,
        ]


def test_two_names_for_what_is_one_size() -> None:
    shapes = ({0: "rows", 1: "length"}, {0: "rows", 1: "memory"}, {0: "rows", 1: "values"})
    source = of_module("cross", CrossAttention(), (rand(2, 5, 16), rand(2, 6, 16), rand(2, 6, 16)), shapes)
    captured = capture(source)
    assert captured.inputs[1].shape == captured.inputs[2].shape == ("rows", "memory", 16)


def test_axes_without_names_are_named_by_their_place() -> None:
    auto = {axis: Dim.AUTO for axis in range(3)}
    source = of_module("cross", CrossAttention(), (rand(2, 5, 16), rand(2, 6, 16), rand(2, 6, 16)), (auto,) * 3)
    assert source.dynamic == {
        "query": {0: "batch", 1: "length"},
        "key": {0: "batch", 1: "key_length"},
        "value": {0: "batch", 1: "key_length"},
    }
    assert "axis 2 of `query` was given as dynamic but stays fixed" in source.warnings[0]


def test_given_axes_of_size_one_grow_and_absent_ones_stay() -> None:
    source = of_module("linear", nn.Linear(4, 4), (rand(1, 7, 4),), {"input": {0: "batch"}})
    assert source.inputs["input"].shape == (2, 7, 4) and source.dynamic == {"input": {0: "batch"}}
    assert of_module("linear", nn.Linear(4, 4), (rand(2, 7, 4),), {}).dynamic == {}


def test_arithmetic_dims_as_torch_export_takes_them() -> None:
    length = Dim("length", max=40)
    source = of_module("double", Double(), (rand(2, 5, 4), rand(2, 10, 4)), ({1: length}, {1: 2 * length}))
    assert source.dynamic == {"a": {1: "length"}, "b": {1: "2*length"}}
    assert [spec.shape for spec in capture(source).inputs] == [(2, "length", 4), (2, "2*length", 4)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": {0: "batch"}}, "names `z`, which is no input"),
        ({"x": {5: "batch"}}, "axis 5 of `x`, which has 3 axes"),
        ({"x": ("batch", None)}, "gives 2 axes for `x`, which has 3"),
        ({"x": [1]}, "gives 1 axes for `x`"),
        ({"x": "batch"}, "dynamic_shapes for `x` is 'batch'"),
        ({"past": {0: "batch"}}, "Nest them as the inputs are nested"),
        ({"flag": {0: "batch"}}, "`flag` is a constant of the graph"),
        ((None,), "1 entries for 3 inputs (x, past, flag)"),
        (7, "dynamic_shapes is a int"),
        ({"x": {0: "n"}, "past": ({0: "n"}, None)}, "`n` is 2 in axis 0 of `x` and 3 in axis 0 of `past_0`"),
    ],
)
def test_dynamic_shapes_that_do_not_fit(shapes, words: str) -> None:
    class Nested(nn.Module):
        def forward(self, x, past, flag):
            return x + past[0].sum()

    with pytest.raises(UsageError) as caught:
        of_module("nested", Nested(), {"x": rand(2, 7, 4), "past": (rand(3, 1), rand(1)), "flag": True}, shapes)
    assert words in str(caught.value)


def test_a_layout_resizes_pins_merges_and_renames() -> None:
    layout = Layout({"x": ("s1", "s2"), "m": ("s1", "s2 + s3"), "w": (4,)}, {"s1": 2, "s2": 5, "s3": 4}, {"s3": 9})
    assert layout.at({"s2": 8}) == {"x": {1: 8}, "m": {1: 12}}
    assert layout.pinned("s3").shapes["m"] == ("s1", "s2 + 4") and "s3" not in layout.pinned("s3").largest
    assert layout.merged("s2", "s3").shapes["m"] == ("s1", "s2 + s2") and layout.merged("s2", "s3").largest == {"s2": 9}
    assert layout.renamed({"s1": "s2", "s2": "s1"}).shapes["x"] == ("s2", "s1")
    assert layout.axes("s3") == [("m", 1)]
    assert substitute("s1*2 + 1", {"s1": "3"}) == 7 and symbols("s1 + 2*s10") == ["s1", "s10"] and symbols(4) == []
