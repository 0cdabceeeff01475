"""Latency: percentiles of times that were seen, warm-up left out."""

import pytest

from engines.runner import TensorSpec, measure, percentile


def test_percentiles_are_nearest_rank() -> None:
    times = [float(t) for t in (10, 1, 9, 2, 8, 3, 7, 4, 6, 5)]
    assert [percentile(times, p) for p in (50, 90, 100)] == [5, 9, 10]
    assert percentile([3.0], 50) == percentile([3.0], 90) == 3
    assert percentile([1.0, 2.0, 3.0], 50) == 2


def test_measure_counts_timed_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.001, 1.0, 1.002, 2.0, 2.004])
    monkeypatch.setattr("engines.runner.time.perf_counter", lambda: next(clock))
    runs = []
    latency = measure(lambda: runs.append(1), repeat=3, warmup=2)
    assert len(runs) == 5
    assert (latency.repeat, latency.p50_ms, latency.p90_ms) == (3, pytest.approx(2), pytest.approx(4))


def test_a_spec_reads_as_one_writes_it() -> None:
    assert str(TensorSpec("q", "float16", ("batch", 8, "length"))) == "q float16[batch, 8, length]"
