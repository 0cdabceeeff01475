"""Feeds: every misfit is met with the input's name and the remedy, and random inputs are ones a model can take."""

import ml_dtypes
import numpy as np
import pytest

from engines.errors import UsageError
from engines.feeds import bind_dims, check_feeds, parse_dims, random_feeds, resolve_dims
from engines.runner import TensorSpec

Q = TensorSpec("query", "float16", ("batch", 2, "length", 8))
K = TensorSpec("key", "float16", ("batch", 2, "memory", 8))
MASK = TensorSpec("mask", "bool", ("batch", "memory"))


def feeds(**changes: object) -> dict[str, object]:
    return {
        "query": np.zeros((3, 2, 5, 8), np.float16),
        "key": np.zeros((3, 2, 7, 8), np.float16),
        "mask": np.ones((3, 7), bool),
    } | changes


def refused(**changes: object) -> str:
    given = {name: value for name, value in feeds(**changes).items() if value is not None}
    with pytest.raises(UsageError) as caught:
        check_feeds((Q, K, MASK), given)
    return str(caught.value)


def test_good_feeds_come_back_in_the_models_order() -> None:
    given = dict(reversed(feeds().items()))
    assert list(check_feeds((Q, K, MASK), given)) == ["query", "key", "mask"]


def test_views_and_foreign_byte_order_become_plain_arrays() -> None:
    strided = np.arange(8, dtype=">f4")[::2]
    (array,) = check_feeds([TensorSpec("x", "float32", (4,))], {"x": strided}).values()
    assert array.flags.c_contiguous
    assert array.dtype.isnative
    assert array.tolist() == [0, 2, 4, 6]


def test_a_scalar_stays_a_scalar() -> None:
    (array,) = check_feeds([TensorSpec("x", "int64", ())], {"x": np.int64(3)}).values()
    assert array.shape == ()


def test_unknown_input_gets_the_nearest_name_and_the_list() -> None:
    text = refused(qery=np.zeros(1), query=None)
    assert "no input 'qery'" in text
    assert "query float16[batch, 2, length, 8], key float16" in text
    assert "Did you mean 'query'?" in text


def test_missing_input() -> None:
    assert "The feeds lack 'key', 'mask'" in refused(key=None, mask=None)


@pytest.mark.parametrize(
    ("dtype", "given", "cast"),
    [
        ("float16", np.float32, "astype(np.float16)"),
        ("bfloat16", np.float32, "astype(ml_dtypes.bfloat16)"),
        ("float16", ml_dtypes.bfloat16, "astype(np.float16)"),
        ("int64", np.int32, "astype(np.int64)"),
        ("bool", np.uint8, "astype(np.bool_)"),
    ],
)
def test_wrong_dtype_says_the_cast(dtype: str, given: type, cast: str) -> None:
    with pytest.raises(UsageError, match=rf"Input 'x' is {np.dtype(given)}; the model takes {dtype}") as caught:
        check_feeds([TensorSpec("x", dtype, ("n",))], {"x": np.zeros(2, given)})
    assert cast in str(caught.value)


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([object()]), np.zeros(1, "V3")])
def test_what_is_not_a_number_is_said_to_be_none(values: np.ndarray) -> None:
    with pytest.raises(UsageError, match="not numbers"):
        check_feeds([TensorSpec("x", "float32", (1,))], {"x": values})


def test_wrong_rank_and_fixed_size() -> None:
    assert "Input 'mask' has 3 axes, [3, 1, 7]; the model takes 2" in refused(mask=np.ones((3, 1, 7), bool))
    text = refused(query=np.zeros((3, 2, 5, 9), np.float16))
    assert "Axis 3 of input 'query' is 9; the model fixes it to 8" in text


def test_inputs_that_disagree_about_a_dimension() -> None:
    text = refused(mask=np.ones((3, 6), bool))
    assert "Dimension 'memory' is 7 in axis 2 of 'key' and 6 in axis 1 of 'mask'" in text


def test_arithmetic_on_dimensions() -> None:
    specs = [TensorSpec("total", "bool", ("past + length",)), TensorSpec("x", "bool", ("past", "length"))]
    assert bind_dims(specs, {"total": (7,), "x": (3, 4)}) == {"past": 3, "length": 4}
    with pytest.raises(UsageError, match=r"'past \+ length' is 8 in axis 0 of 'total', but 7 by past = 3, length = 4"):
        bind_dims(specs, {"total": (8,), "x": (3, 4)})
    dims = resolve_dims(specs, {"past": 3, "length": 4})
    assert random_feeds(specs, dims)["total"].shape == (7,)
    assert bind_dims(specs[:1], {"total": (7,)}) == {}


class TestDims:
    def test_parse(self) -> None:
        assert parse_dims("batch=2, length=16,") == {"batch": 2, "length": 16}

    @pytest.mark.parametrize("text", ["batch", "batch=", "=2", "batch=two", "batch=0", "batch=-1", "batch=1:2:3"])
    def test_parse_refuses(self, text: str) -> None:
        with pytest.raises(UsageError, match="is not a size: write --shapes name=size"):
            parse_dims(text)

    def test_given_before_usual_before_default(self) -> None:
        specs = [TensorSpec("x", "float32", ("batch_size", "length", "width", "depth"))]
        assert resolve_dims(specs, {"length": 5}, {"length": 9, "width": 7}) == {
            "batch_size": 2,
            "length": 5,
            "width": 7,
            "depth": 16,
        }

    def test_unknown_name(self) -> None:
        with pytest.raises(UsageError, match="no symbolic dimension 'len': its dimensions are batch, memory"):
            resolve_dims([MASK], {"len": 3})
        with pytest.raises(UsageError, match="all of its dimensions are fixed"):
            resolve_dims([TensorSpec("x", "bool", (3,))], {"len": 3})


class TestRandom:
    def test_shapes_dtypes_and_seed(self) -> None:
        specs = [Q, TensorSpec("b", "bfloat16", ("length",)), TensorSpec("d", "float64", (4,))]
        dims = {"batch": 2, "length": 300}
        one, same, other = (random_feeds(specs, dims, seed) for seed in (1, 1, 2))
        assert one["query"].shape == (2, 2, 300, 8)
        assert [one[n].dtype.name for n in one] == ["float16", "bfloat16", "float64"]
        assert all((one[n] == same[n]).all() for n in one)
        assert not (one["query"] == other["query"]).all()
        assert 0.9 < one["query"].astype(np.float32).std() < 1.1
        assert check_feeds(specs, one).keys() == one.keys()

    def test_every_mask_row_keeps_and_hides_something(self) -> None:
        mask = random_feeds([MASK], {"batch": 500, "memory": 4})["mask"]
        assert mask.any(-1).all()
        assert not mask.all(-1).any()
        assert random_feeds([MASK], {"batch": 3, "memory": 1})["mask"].all()

    def test_integers_are_valid_indices_of_the_smallest_dynamic_axis(self) -> None:
        specs = [TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("x", "float32", ("short",))]
        ids = random_feeds(specs, {"batch": 50, "length": 90, "short": 6})["ids"]
        assert (ids.min(), ids.max()) == (0, 5)

    def test_integers_without_symbolic_sizes(self) -> None:
        specs = [TensorSpec("position", "int32", ()), TensorSpec("sample", "int64", (400, 3))]
        drawn = random_feeds(specs, {})
        assert drawn["position"] == 0
        assert set(drawn["sample"].ravel()) == {0, 1, 2}

    def test_what_cannot_be_drawn(self) -> None:
        with pytest.raises(UsageError, match="Cannot draw random values of complex64"):
            random_feeds([TensorSpec("x", "complex64", (2,))], {})
        with pytest.raises(UsageError, match="no array type for 'float5'"):
            random_feeds([TensorSpec("x", "float5", (2,))], {})
