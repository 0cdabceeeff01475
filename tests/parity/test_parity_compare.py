"""What makes one output wrong: shape, dtype, places of NaN and Inf, an element, the whole; and what does not."""

import numpy as np
import pytest

from export.parity.compare import Expected, compare
from export.parity.precision import precision
from export.parity.result import ParityRow, table

FP16, FP32 = precision("fp16"), precision("fp32")
VALUE = np.linspace(-2, 2, 24).reshape(2, 3, 4)


def expected(value=VALUE, dtype="float16", reach=1e-3, norm=4e-3, **more):
    return Expected("y", dtype, value, reach, norm, **more)


def half(value):
    return np.asarray(value).astype(np.float16)


def test_the_rounded_truth_is_right():
    verdict = compare(half(VALUE), expected(reach=0.0, norm=0.0), FP16)
    assert verdict.ok
    assert verdict.ratio <= 0.5
    assert verdict.reason == ""


def test_another_shape_is_a_sentence():
    verdict = compare(half(VALUE[:1]), expected(), FP16)
    assert not verdict.ok
    assert verdict.reason == "y has shape [1, 3, 4]; PyTorch returns [2, 3, 4]."


def test_another_dtype_is_a_sentence():
    verdict = compare(VALUE.astype(np.float32), expected(), FP16)
    assert not verdict.ok
    assert verdict.reason == "y is float32; PyTorch returns float16."


def test_the_worst_element_is_named_with_both_values():
    wrong = half(VALUE)
    wrong[1, 2, 0] += half(0.25)
    verdict = compare(wrong, expected(), FP16)
    assert not verdict.ok
    assert verdict.worst == (1, 2, 0)
    assert verdict.expected == VALUE[1, 2, 0]
    assert verdict.actual == float(wrong[1, 2, 0])
    assert verdict.max_error == pytest.approx(0.25, abs=1e-3)
    assert verdict.ratio > 10
    assert verdict.reason == "1 of 24 elements of y lie outside their budget."


def test_an_error_no_element_shows_is_seen_in_the_norm():
    value = np.ones(4096)
    off = value + 3.5 * 2.0**-23  # 3.5 ulp everywhere: each within 4 ulp, all in one direction
    verdict = compare(off.astype(np.float32), Expected("y", "float32", value, 0.0, 0.0), FP32)
    assert not verdict.ok
    assert verdict.reason.startswith("y is off as a whole")
    assert verdict.ratio > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_fails_at_its_place(bad):
    wrong = half(VALUE)
    wrong[0, 1, 2] = bad
    verdict = compare(wrong, expected(reach=100.0), FP16)
    assert not verdict.ok
    assert verdict.worst == (0, 1, 2)
    assert verdict.ratio == np.inf
    assert "at 1 of 24 elements where float64 is finite" in verdict.reason


def test_nan_and_inf_must_be_where_float64_has_them():
    value = VALUE.copy()
    value[0, 0, 0], value[0, 0, 1] = np.nan, -np.inf
    assert compare(half(value), expected(value), FP16).ok
    moved = half(value)
    moved[0, 0, 0], moved[0, 0, 1] = -np.inf, np.nan
    assert "in other places" in compare(moved, expected(value), FP16).reason
    assert not compare(half(VALUE), expected(value), FP16).ok


def test_inf_is_right_past_the_dtypes_largest_number_only():
    value = np.array([70000.0, -70000.0, 1.0])
    assert compare(np.array([np.inf, -np.inf, 1], np.float16), expected(value), FP16).ok
    assert not compare(np.array([-np.inf, -np.inf, 1], np.float16), expected(value), FP16).ok
    near = np.array([65519.0])  # rounds to 65504; within the budget lies Inf
    assert compare(np.array([np.inf], np.float16), expected(near, reach=10.0), FP16).ok
    assert not compare(np.array([np.inf], np.float16), expected(np.array([60000.0]), reach=10.0), FP16).ok


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_integers_and_bools_must_be_equal(dtype):
    value = np.array([[1, 0], [1, 1]]).astype(dtype)
    assert compare(value, Expected("i", dtype, value), FP16).ok
    wrong = value.copy()
    wrong[1, 0] = 0
    verdict = compare(wrong, Expected("i", dtype, value, reach=100.0), FP16)
    assert not verdict.ok
    assert verdict.worst == (1, 0)
    assert verdict.reason == f"1 of 4 elements of i differ; {dtype} must be equal."


def test_an_empty_output_has_only_its_shape_and_dtype():
    empty = np.zeros((0, 3))
    verdict = compare(half(empty), expected(empty), FP16)
    assert verdict.ok
    assert "nothing to compare" in verdict.reason
    assert not compare(half(np.zeros((0, 4))), expected(empty), FP16).ok


def test_a_scalar_is_compared_at_the_empty_coordinate():
    verdict = compare(np.float16(1.0).reshape(()), expected(np.array(2.0)), FP16)
    assert not verdict.ok
    assert verdict.worst == ()


def test_at_rows_without_keys_either_of_two_answers_is_right_and_no_third():
    dead = np.zeros(VALUE.shape, dtype=bool)
    dead[1, 2] = True
    other = np.where(dead, VALUE + 1, VALUE)
    want = expected(dead=dead, other=other)
    assert compare(half(VALUE), want, FP16).ok
    assert compare(half(other), want, FP16).ok
    third = np.where(dead, VALUE - 1, VALUE)
    verdict = compare(half(third), want, FP16)
    assert not verdict.ok
    assert "All of them are in rows that see no key" in verdict.reason
    outside = half(VALUE)
    outside[0, 0, 0] += 1
    assert "see no key" not in compare(outside, want, FP16).reason


def test_zero_weights_instead_of_nan_are_said():
    dead = np.zeros(VALUE.shape, dtype=bool)
    dead[1, 2] = True
    nan = np.where(dead, np.nan, VALUE)
    want = expected(nan, dead=dead, other=np.where(dead, 0.0, VALUE))
    assert compare(half(nan), want, FP16).reason == ""
    verdict = compare(half(np.where(dead, 0.0, VALUE)), want, FP16)
    assert verdict.ok
    assert "are NaN in PyTorch and were computed with zero weights" in verdict.reason
    assert not compare(half(np.where(dead, 0.5, VALUE)), want, FP16).ok


def test_a_budget_that_shows_nothing_is_said():
    verdict = compare(half(VALUE), expected(reach=1.0, norm=5.0), FP16)
    assert verdict.ok
    assert "fp16 itself is this coarse here" in verdict.reason


def test_wrong_everywhere_not_finite_is_no_crash():
    nothing = np.full(VALUE.shape, np.nan)
    assert not compare(half(nothing), expected(), FP16).ok
    assert compare(half(nothing), expected(nothing), FP16).ok


def test_the_table_shows_the_error_of_the_element_it_names():
    row = ParityRow("c", "fused", "ok", 0.5, 0.1, 0.8, "y", (1, 2), expected=1.0, actual=1.08)
    head, line = (line.split() for line in table([row]).splitlines())
    assert head == ["case", "stage", "status", "error", "error/budget", "worst", "at"]
    assert line == ["c", "fused", "OK", "0.08", "0.8", "y[1,", "2]"]
    unplaced = table([ParityRow("c", "fused", "ok", 0.5, 0.1, 0.8)]).splitlines()[1]
    assert unplaced.split() == ["c", "fused", "OK", "0.5", "0.8"]
