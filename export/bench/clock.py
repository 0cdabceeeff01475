"""Times contenders in turn on the CPU: rounds are interleaved, their order changes, threads are pinned.

The first call of a round finds the caches as the others left them and is not counted. Each other call is timed by the
wall clock, and each round by the processor time of the whole process as well: on a machine
that others use too, the second says what a call costs and the first what one waits.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

WARMUP = 2
MOST_ROUNDS, FEWEST_ROUNDS = 101, 5
ROUND_SECONDS = 0.01
"""Least time of one contender in one round: shorter calls are repeated."""


@dataclass
class Times:
    """Seconds of every call, by round, and the processor seconds of one call in each round."""

    wall: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def extend(self, more: "Times") -> None:
        """Takes the rounds of another sitting in."""
        self.wall += more.wall
        self.cpu += more.cpu


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Returns the times of each call, after a warm-up.

    Args:
        calls: What to time, by name; each returns when its result is complete.
        seconds: About how long to time them all together.
    """
    if not calls:
        return {}
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times = {name: Times() for name in calls}
    start, names = time.perf_counter(), list(calls)
    for done in range(MOST_ROUNDS):
        spent = time.perf_counter() - start
        if done >= FEWEST_ROUNDS and spent + spent / done > seconds:
            break
        turn = done % len(names)
        for name in (*names[turn:], *names[:turn]):
            _once(calls[name], repeats[name], times[name])
    return times


def _once(call: Callable[[], object], repeats: int, times: Times) -> None:
    walls = []
    call()
    cpu = time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    times.cpu.append((time.process_time() - cpu) / repeats)
    times.wall.append(walls)


def _repeats(call: Callable[[], object]) -> int:
    """Returns how many calls make a round, after warming up."""
    shortest = float("inf")
    for _ in range(WARMUP + 1):
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    # A power of two: contenders that are about as fast as each other are called equally often in a round.
    return int(2 ** max(0, round(math.log2(ROUND_SECONDS / max(shortest, 1e-6)))))


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[str]:
    """Keeps this process and the threads it starts on as many processors as there are threads.

    Yields:
        What was done, in words.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield f"{threads} threads, not pinned: this system cannot"
        return
    before = os.sched_getaffinity(0)
    chosen = set(sorted(before)[:threads])
    os.sched_setaffinity(0, chosen)
    try:
        yield f"{threads} threads on {len(chosen)} processors, spinning off"
    finally:
        os.sched_setaffinity(0, before)
