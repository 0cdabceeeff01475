"""A lock file that tells whether the process that made it still lives.

The operating system lets go of a lock when its process ends, however it ends, so a lock that can be taken over belongs
to nobody. Process ids cannot say that: they are reused, and differ between containers that share a disk.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.05


class Lock:
    """A locked file; held until `remove`."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle

    @classmethod
    def create(cls, path: Path) -> "Lock | None":
        """Returns the lock on a new file; None where another process took the file over before it was locked.

        Raises:
            OSError: The file cannot be made, or exists.
        """
        return cls._on(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))

    @classmethod
    def take_over(cls, path: Path) -> "Lock | None":
        """Returns the lock on a file whose owner is gone; None where the owner lives, or the file went away."""
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            return None
        return cls._on(path, handle)

    @classmethod
    def wait(cls, path: Path, waiting: Callable[[], None] = lambda: None) -> "Lock":
        """Returns the lock on a file, made where it is missing, once whoever holds it is done or dead.

        Args:
            path: The file.
            waiting: Called some times a second while another holds it; what it raises ends the wait.

        Raises:
            OSError: The file cannot be made.
        """
        while True:
            lock = cls._on(path, os.open(path, os.O_CREAT | os.O_RDWR, 0o666))
            if lock is not None:
                return lock
            waiting()
            time.sleep(_POLL_SECONDS)

    @classmethod
    def _on(cls, path: Path, handle: int) -> "Lock | None":
        if _try(handle) and _is_still(path, handle):
            return cls(path, handle)
        os.close(handle)
        return None

    def remove(self) -> None:
        """Removes the file and lets go of it, in this order: nobody may lock a name that is about to go."""
        if sys.platform == "win32":  # where an open file cannot be removed
            os.close(self._handle)
            self._path.unlink(missing_ok=True)
            return
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
