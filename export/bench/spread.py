"""Medians and how far they may be trusted: percentiles, the spread over rounds, and when two times are equal.

Rounds are interleaved: in every round each contender is timed once, one after another, so that what slows the machine
down for a while slows them all. A ratio is therefore taken within rounds, and its median over them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LESS, EQUAL, MORE = "slower", "equal", "faster"


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the value that `percent` of the values do not exceed, between neighbours on a straight line.

    Args:
        values: At least one.
        percent: 0 to 100.
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def relative_spread(values: Sequence[float]) -> float:
    """Returns half the interquartile range over the median: what half of the rounds stay within."""
    middle = median(values)
    return (percentile(values, 75) - percentile(values, 25)) / 2 / middle if middle else 0.0


@dataclass(frozen=True)
class Timing:
    """Wall times of one contender.

    Attributes:
        rounds: Rounds it was timed in.
        calls: Calls in each round.
        p50_ms, p90_ms, p99_ms: Percentiles over every call, milliseconds.
        spread: Half the interquartile range of the rounds' medians, over their median.
        cpu_ms: Median over the rounds of the processor time of one call, all threads together; None on a GPU.
    """

    rounds: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    spread: float
    cpu_ms: float | None

    @property
    def per_second(self) -> float:
        """Calls in a second, one after another."""
        return 1000 / self.p50_ms


def timing(rounds: Sequence[Sequence[float]], cpu: Sequence[float] | None = None) -> Timing:
    """Returns the percentiles of the calls of all rounds.

    Args:
        rounds: For each round, the seconds of each call.
        cpu: For each round, the processor seconds of one call; None where they mean nothing.
    """
    calls = [1000 * seconds for one in rounds for seconds in one]
    return Timing(
        rounds=len(rounds),
        calls=len(rounds[0]),
        p50_ms=percentile(calls, 50),
        p90_ms=percentile(calls, 90),
        p99_ms=percentile(calls, 99),
        spread=relative_spread([median(one) for one in rounds]),
        cpu_ms=None if cpu is None else 1000 * median(cpu),
    )


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one contender is as another.

    Attributes:
        value: Median over the rounds of (the other's time / its time): above 1 it is faster.
        spread: Half the interquartile range of that quotient over its median.
    """

    value: float
    spread: float

    @property
    def verdict(self) -> str:
        """Says "equal" where the ratio is within twice its spread of 1, else "faster" or "slower"."""
        if abs(self.value - 1) <= 2 * self.spread:
            return EQUAL
        return MORE if self.value > 1 else LESS


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Ratio:
    """Returns how many times as fast `ours` is, from rounds that were timed in turn."""
    quotients = [median(b) / median(a) for a, b in zip(ours, theirs, strict=True)]
    return Ratio(median(quotients), relative_spread(quotients))
