"""Profiles: what users write, what models say, what is refused with a sentence."""

import pytest

from engines.errors import UsageError
from engines.profiles import DEFAULT_BATCH, DEFAULT_LENGTH, InputShapes, Shapes, derive, parse

INPUTS = {"x": ("batch", "length", 64), "mask": ("batch", 1, 1, "length")}


def test_parse_reads_dimensions_and_whole_inputs() -> None:
    shapes = parse(" batch=1:2:8, length=4 , y=1x1x64:2x128x64:8x512x64,z=3X5 ")
    assert shapes.dims == {"batch": (1, 2, 8), "length": (4, 4, 4)}
    assert shapes.inputs["y"] == InputShapes((1, 1, 64), (2, 128, 64), (8, 512, 64))
    assert shapes.inputs["z"] == InputShapes((3, 5), (3, 5), (3, 5))
    assert str(shapes.inputs["y"]) == "1x1x64:2x128x64:8x512x64"


def test_parse_joins_repeated_flags() -> None:
    assert parse(["batch=2", "length=7"]).dims == {"batch": (2, 2, 2), "length": (7, 7, 7)}
    assert parse("") == Shapes()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch", "'batch' is no shape: write a dimension as"),
        ("=3", "is no shape"),
        ("batch=", "is no shape"),
        ("batch=1:2", "has two sizes; give one for a fixed size or three"),
        ("batch=1:2:3:4", "has 4 sizes between colons"),
        ("batch=a:b:c", "'a' in 'batch=a:b:c' is not a size"),
        ("batch=-1", "'-1' in 'batch=-1' is not a size"),
        ("batch=0:1:2", "has a size of 0; batch must be at least 1"),
        ("length=1:600:512", "opt 600 lies outside 1..512"),
        ("length=8:4:512", "opt 4 lies outside 8..512"),
        ("x=1x2:1x2x3:1x2", "mixes ranks 2, 3, 2"),
        ("x=1x2:1x1:1x4", "opt 1 lies outside 2..4"),
        ("x=0x2", "has a size of 0"),
        ("batch=1,batch=2", "gives 'batch' twice"),
        ("x=1xx2", "'' in 'x=1xx2' is not a size"),
    ],
)
def test_parse_refuses(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert sentence in str(caught.value)


def test_derive_uses_the_models_ranges_and_the_users_win() -> None:
    profile = derive(INPUTS, {"batch": (1, 2, 4), "length": (1, 16, 32), "memory": (1, 1, 1)}, parse("length=2:8:64"))
    assert profile.inputs["x"] == InputShapes((1, 2, 64), (2, 8, 64), (4, 64, 64))
    assert profile.inputs["mask"] == InputShapes((1, 1, 1, 2), (2, 1, 1, 8), (4, 1, 1, 64))
    assert profile.dims == {"batch": (1, 2, 4), "length": (2, 8, 64)}
    assert profile.defaulted == ()


def test_derive_defaults_what_nobody_gave_and_says_so() -> None:
    profile = derive({"x": ("Batch_size", "time", 8), "n": ()})
    assert profile.dims == {"Batch_size": DEFAULT_BATCH, "time": DEFAULT_LENGTH}
    assert profile.defaulted == ("Batch_size", "time")
    assert profile.inputs["n"] == InputShapes((), (), ())


def test_derive_binds_a_dimension_of_every_input_by_one_inputs_shapes() -> None:
    profile = derive(INPUTS, None, parse("x=1x1x64:2x128x64:8x512x64"))
    assert profile.inputs["mask"] == InputShapes((1, 1, 1, 1), (2, 1, 1, 128), (8, 1, 1, 512))
    assert profile.defaulted == ()


def test_derive_evaluates_arithmetic_on_names() -> None:
    inputs = {"x": ("batch", "length"), "mask": ("batch", "past + length"), "half": ("length//2 + 1",)}
    profile = derive(inputs, {"batch": (1, 1, 1), "length": (1, 2, 8), "past": (0 + 1, 10, 100)})
    assert profile.inputs["mask"] == InputShapes((1, 2), (1, 12), (1, 108))
    assert profile.inputs["half"] == InputShapes((1,), (2,), (5,))
    assert set(profile.dims) == {"batch", "length", "past"}


def test_derive_names_an_axis_without_a_name() -> None:
    profile = derive({"x": ("batch", "", 4)}, {"batch": (1, 1, 1)}, parse("x.1=2:3:4"))
    assert profile.inputs["x"] == InputShapes((1, 2, 4), (1, 3, 4), (1, 4, 4))
    assert derive({"x": ("batch size", "")}).defaulted == ("batch size", "x.1")


@pytest.mark.parametrize(
    ("dims", "text", "sentence"),
    [
        ({}, "width=3", "The model has no dimension 'width': its dimensions are batch, length."),
        ({}, "y=1x2", "The model has no input 'y'; its inputs are x, mask"),
        ({}, "x=3", "'x' is an input with 3 axes; give all its sizes"),
        ({}, "x=1x2", "Input 'x' has 3 axes, but x=1x2:1x2:1x2 gives 2."),
        ({}, "x=1x2x65", "cannot be; with the other sizes it must be x=1x2x64"),
        ({}, "x=1x2x64,mask=2x1x1x2", "makes batch 2:2:2, and x=1x2x64:1x2x64:1x2x64 says otherwise"),
        ({}, "batch=3,x=1x2x64", "makes batch 1:1:1, and batch=3:3:3 says otherwise"),
        ({"length": (1, 9, 8)}, "", "opt 9 lies outside 1..8"),
        ({"length": (0, 1, 8)}, "", "has a size of 0"),
    ],
)
def test_derive_refuses(dims: dict[str, tuple[int, int, int]], text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        derive(INPUTS, dims, parse(text))
    assert sentence in str(caught.value)


def test_a_model_without_dimensions_says_so() -> None:
    with pytest.raises(UsageError, match="all of its dimensions are fixed"):
        derive({"x": (1, 2)}, None, parse("batch=3"))
