"""How much memory opening and running something takes at its peak, beyond what the process held before."""

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 64 * 1024
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
"""Where glibc's own adjusting ends up in a process that allocates large tensors again and again."""
T = TypeVar("T")


def peak(work: Callable[[], T]) -> tuple[T, int | None]:
    """Returns what `work` returns, and the bytes by which resident memory rose at its peak; None where unknown.

    Memory that was freed before is given back first, so that it is not silently used again; allocations of 64 KiB and
    more are made apart for the same reason. What is smaller is not seen.
    """
    if not _settled():
        return work(), None
    before = _resident("VmRSS")
    try:
        made = work()
        most = _resident("VmHWM")
    finally:
        _set(_USUAL)
    return made, None if before is None or most is None else max(most - before, 0)


def _settled() -> bool:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    _set({_MMAP_THRESHOLD: _LARGE})
    try:
        _CLEAR.write_text("5")  # the high-water mark becomes what is resident now
    except OSError:
        return False
    return True


def _set(options: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for name, value in options.items():
            libc.mallopt(name, value)


def _resident(field: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
