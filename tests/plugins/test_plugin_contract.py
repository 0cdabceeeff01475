"""The operator's contract: settings and shapes that have no meaning are refused with a sentence."""

import pytest

from plugins.contract import ROTARY_ATTENTION, Settings, find, output_shape

SHAPES = {
    "q": (2, 8, 5, 64),
    "k": (2, 4, 7, 64),
    "v": (2, 4, 7, 32),
    "cos": (16, 32),
    "sin": (16, 32),
    "bias": (1, 8, 1, 7),
    "lengths": (2,),
}
EVERYTHING = Settings(0.125, 5.0, 2, 3, 64, 0, 1, 1, 1)


def test_the_settings_are_the_attributes() -> None:
    assert list(EVERYTHING.as_attributes()) == [attribute.name for attribute in ROTARY_ATTENTION.attributes]
    assert find("attnproof", "RotaryAttention") is ROTARY_ATTENTION
    assert find("", "RotaryAttention") is None


def test_the_output_has_the_shape_of_the_queries_and_the_size_of_the_values() -> None:
    assert output_shape(EVERYTHING, SHAPES) == (2, 8, 5, 32)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"k": (2, 4, 7, 63)}, r"k is \[2, 4, 7, 63\]; its axes are \[B, G, T, D\], and D is 64"),
        ({"v": (2, 4, 8, 32)}, "T is 7 in this call"),
        ({"bias": (1, 4, 1, 7)}, r"bias is \[1, 4, 1, 7\]"),
        ({"bias": (7,)}, r"bias is \[7\]; it has the axes"),
        ({"lengths": (3,)}, "B is 2"),
        ({"cos": (16, 16), "sin": (16, 16)}, "cos and sin have 16 columns; rotary_embedding_dim 64 needs 32"),
        ({"k": (2, 3, 7, 64), "v": (2, 3, 7, 32)}, "8 query heads cannot share 3 key heads"),
        ({"v": (2, 4, 7, 8)}, "head size 8 is outside 16 to 256"),
    ],
)
def test_shapes_that_break_the_contract_are_refused(changed: dict[str, tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        output_shape(EVERYTHING, {**SHAPES, **changed})


def test_what_is_switched_off_may_have_any_size() -> None:
    off = {"cos": (1, 1), "sin": (1, 1), "bias": (1, 1, 1, 1), "lengths": (1,)}
    assert output_shape(Settings(0.125), {**SHAPES, **off}) == (2, 8, 5, 32)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"causal_kind": 3}, "causal_kind is 3"),
        ({"softcap": -1.0}, "0 .off. or positive"),
        ({"rotary_embedding_dim": 7}, "columns turn in pairs"),
        ({"rotate_key": 1}, "rotate_key needs a rotary_embedding_dim"),
    ],
)
def test_settings_without_meaning_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Settings(**{"scale": 1.0, **values})  # type: ignore[arg-type]
