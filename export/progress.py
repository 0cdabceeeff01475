"""How far the work has come, told to whoever watches: a terminal's progress bars, or nobody.

The layers that do the work say what they do with `step`; they know neither terminal nor threads. One watcher is set for
the length of one command (`watched`). It is called from the threads that build engines, so it must be safe for that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Watcher = Callable[[str, int, int, str], None]
"""Called with the step's name, how much of it is done, how much there is (0: not known) and a word about it."""

_watcher: Watcher | None = None


def step(name: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Tells the watcher, if there is one, that `done` of `total` of a step are done."""
    if _watcher is not None:
        _watcher(name, done, total, note)


@contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """Lets `by` watch all steps, of every thread, until the block ends."""
    global _watcher
    before, _watcher = _watcher, by
    try:
        yield
    finally:
        _watcher = before
