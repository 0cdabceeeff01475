"""Copies part of a file to the end of another inside the kernel, holes as holes: weights never pass through memory."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PIECE = 1 << 26


def copy_range(source: Path, offset: int, length: int, target: IO[bytes]) -> None:
    """Appends bytes of a file to `target`, which is as long afterwards as if they had been written.

    Args:
        source: The file to read.
        offset: Its first byte to copy.
        length: How many.
        target: A file open for writing, at its end.

    Raises:
        OSError: Reading or writing failed; the disk may be full.
    """
    target.flush()
    out = target.fileno()
    start = target.tell()
    with source.open("rb") as file:
        if os.fstat(file.fileno()).st_size < offset + length:
            raise OSError(errno.EIO, "the data file ends early", os.fspath(source))
        for begin, end in _data(file.fileno(), offset, offset + length):
            _copy(file.fileno(), out, begin, end - begin, start + begin - offset)
    os.ftruncate(out, start + length)
    target.seek(start + length)


def _copy(source: int, target: int, at: int, count: int, to: int) -> None:
    while count:
        try:
            done = os.copy_file_range(source, target, min(count, _PIECE), at, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                raise
            done = os.pwrite(target, os.pread(source, min(count, _PIECE), at), to)  # two file systems, or an odd one
        if not done:
            raise OSError(errno.EIO, "the file ended early")
        at, to, count = at + done, to + done, count - done


def _data(file: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yields where the file has data between two offsets: what lies between is a hole and reads as zeros."""
    at = start
    while at < stop:
        try:
            begin = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            yield at, stop  # a file system that does not tell
            return
        if begin >= stop:
            return
        end = min(os.lseek(file, begin, os.SEEK_HOLE), stop)
        yield begin, end
        at = end
