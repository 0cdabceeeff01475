"""The threads of a verification: how many there may be, and how pieces of one array's work are given to them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MOST = 8
"""However many processors there are: each thread holds arrays of its own."""

T = TypeVar("T")


def count() -> int:
    """Returns how many threads a verification may have: the processors that this process may use, at most `MOST`."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(able, MOST)


def side_by_side(work: Callable[[T], None], pieces: Sequence[T]) -> None:
    """Does the work on every piece, on `count()` threads at most; one piece needs none.

    What the first piece to fail raises is raised, and pieces that were not begun are left (so on KeyboardInterrupt).

    Args:
        work: It writes its result where no other piece does. Threads help as far as it gives up Python's lock.
        pieces: What it is done on.
    """
    threads = min(count(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, pieces):  # it is this loop that raises, and that cancels the rest when it ends
            pass
