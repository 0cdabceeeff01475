"""The numbers that a bench derives: percentiles, spreads, ratios within rounds, operations and bytes by formula."""

import itertools

import numpy as np
import pytest

from export.bench.clock import interleaved
from export.bench.shapes import CAUSAL, PADDED, Shape, floor_seconds
from export.bench.spread import Ratio, percentile, ratio, relative_spread, timing


@pytest.mark.parametrize("percent", [0, 25, 50, 90, 99, 100])
def test_percentiles_are_numpys(percent: int) -> None:
    values = np.random.default_rng(0).standard_normal(37).tolist()
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_spread_is_half_the_interquartile_range_over_the_median() -> None:
    assert relative_spread([8, 9, 10, 11, 12]) == pytest.approx(0.1)
    assert relative_spread([5, 5, 5]) == 0


def test_a_timing_is_over_all_calls_and_its_spread_over_rounds() -> None:
    rounds = [[0.001, 0.003, 0.002], [0.002, 0.002, 0.009], [0.004, 0.004, 0.004]]
    found = timing(rounds, [0.01, 0.03, 0.02])
    assert (found.rounds, found.calls) == (3, 3)
    assert found.p50_ms == pytest.approx(3)
    assert found.p90_ms == pytest.approx(np.percentile(1000 * np.ravel(rounds), 90))
    assert found.spread == pytest.approx(relative_spread([2, 2, 4]))
    assert (found.cpu_ms, found.per_second) == (pytest.approx(20), pytest.approx(1000 / 3))


def test_a_ratio_is_taken_within_rounds() -> None:
    slow_machine = [1, 10, 3, 1, 7]  # what slows both down in a round is not in the ratio
    ours, theirs = [[0.1 * f] for f in slow_machine], [[0.2 * f] for f in slow_machine]
    found = ratio(ours, theirs)
    assert found.value == pytest.approx(2) and found.spread == pytest.approx(0)
    assert found.verdict == "faster" and ratio(theirs, ours).verdict == "slower"


def test_a_ratio_is_equal_within_twice_its_spread() -> None:
    assert [Ratio(value, 0.02).verdict for value in (0.95, 0.97, 1.03, 1.05)] == ["slower", "equal", "equal", "faster"]


def test_rounds_are_interleaved_and_their_order_turns() -> None:
    seen: list[str] = []
    times = interleaved({name: lambda name=name: seen.append(name) for name in "abc"}, 0.05)  # type: ignore[misc]
    assert {len(t.wall) for t in times.values()} == {len(times["a"].cpu)} and len(times["a"].wall) >= 5
    order = [name for name, _ in itertools.groupby(seen)]
    rounds = order[3:]  # the warm-up comes first, one after another
    assert rounds[:3] == ["a", "b", "c"] and rounds[3:6] == ["b", "c", "a"]


@pytest.mark.parametrize("shape", [Shape("padded", 2, 5, 3, 3, 4), Shape("causal", 2, 5, 4, 2, 8)])
def test_operations_are_those_of_the_two_products(shape: Shape) -> None:
    pairs = sum(
        key <= query or shape.family == "padded"
        for _, query, key in itertools.product(range(shape.batch), range(shape.queries), range(shape.key_count))
    )
    one_pair = shape.heads * (2 * shape.size + 2 * shape.size)  # a dot product with K, and V times the weight
    assert shape.flops() == one_pair * pairs


def test_a_causal_query_after_a_cache_sees_the_cache() -> None:
    assert Shape("causal", 1, 1, keys=9).pairs() == 9
    assert Shape("causal", 2, 3, keys=5).pairs() == 2 * (3 + 4 + 5)


def test_bytes_are_each_tensor_once() -> None:
    shape = Shape("causal", 2, 5, 4, 2, 8)
    tensors = [(2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8), (2, 4, 5, 8)]  # Q, K, V and the output
    assert shape.bytes(2) == 2 * sum(int(np.prod(t)) for t in tensors)


def test_the_floor_is_the_higher_of_the_two_ceilings() -> None:
    assert floor_seconds(100, 10, 50, 10) == 2
    assert floor_seconds(100, 40, 50, 10) == 4


def test_the_eight_cases() -> None:
    assert [s.name for s in PADDED] == ["padded B1 S128", "padded B1 S512", "padded B8 S128", "padded B8 S512"]
    assert {(s.heads, s.kv_heads, s.size) for s in PADDED} == {(12, 12, 64)}
    assert {(s.heads, s.kv_heads, s.size) for s in CAUSAL} == {(12, 4, 64)}
