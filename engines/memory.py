"""How much memory this process has needed so far."""

import contextlib


def peak() -> int | None:
    """Returns the most resident memory this process has had, in bytes; None where the system does not tell.

    Not `getrusage` where Linux can tell better: there a process inherits the peak of the one that started it.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024
    return None
