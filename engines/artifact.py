"""How an artifact folder comes to be: built beside its place under a hidden name, then swapped in whole.

    .NAME.<token>.lock     held (flock) while its owner lives
    .NAME.<token>.staged   what is being built; after the exchange, the old folder on its way out
    .NAME.<token>.old      the old folder, for the moment between two renames where the two cannot be exchanged

At every instant NAME is the old folder or the new one. Where the file system cannot exchange two folders there is one
moment in which NAME is missing and the old folder is whole under its .old name; the next run puts it back. What a
killed run leaves is swept by the next one: its lock is free.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.errors import UsageError
from engines.exchange import exchange
from engines.lock import Lock

MARKER = ".artifact.json"
"""The file that says a folder is an artifact of this toolkit, which another run may replace."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; when the block ends well, it is on disk and in the place of `out`.

    When the block raises (KeyboardInterrupt included) nothing of it stays and `out` is as it was. Two runs at once are
    safe: the later to finish wins. A symbolic link is followed: its folder is replaced, not the link.

    Args:
        out: The artifact folder: new, empty, or an earlier artifact. Missing parents are made.

    Raises:
        UsageError: `out` is a file or a folder that is no artifact, or cannot be written, or the disk is full.
    """
    place = Path(os.path.realpath(out))
    made = _make_parents(place.parent, out)
    try:
        with _token(place, out) as token:
            _sweep(place)
            _check_replaceable(place, out)
            stage = _hidden(place, token, "staged")
            try:
                with _explained(out, stage):
                    stage.mkdir()
                    yield stage
                    (stage / MARKER).write_text(json.dumps({"schema": 1, "artifact": "attnproof"}) + "\n")
                    _sync(stage)
                _check_replaceable(place, out)
                with _explained(out):
                    _swap(stage, place, token)
            finally:
                _clear(place, token)
    finally:
        _remove_empty(made)


def recover(out: Path) -> None:
    """Puts back an artifact that a killed run had set aside, where the two folders could not be exchanged."""
    place = Path(os.path.realpath(out))
    if not os.path.lexists(place) and place.parent.is_dir():
        _sweep(place)


def remove(out: Path) -> None:
    """Removes an artifact folder; for any other process it goes at once.

    Raises:
        UsageError: The folder it lies in cannot be written.
    """
    place = Path(os.path.realpath(out))
    if not place.is_dir():
        return
    with _token(place, out) as token:
        with _explained(out):
            os.rename(place, _hidden(place, token, "staged"))  # what a killed run left: the next sweep ends it
        _clear(place, token)


def sweep(out: Path) -> int:
    """Removes what killed runs left around an artifact folder; returns how many hidden files and folders that was."""
    place = Path(os.path.realpath(out))
    before = len(os.listdir(place.parent))
    _sweep(place)
    return max(0, before - len(os.listdir(place.parent)))


def is_artifact(folder: Path) -> bool:
    """Returns whether the folder was made by `staged`."""
    try:
        return bool(json.loads((folder / MARKER).read_text())["artifact"] == "attnproof")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_replaceable(place: Path, out: Path) -> None:
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise UsageError(f"{out} is a file; name a folder for the artifact, or remove it.")
    if is_artifact(place) or not any(place.iterdir()):
        return
    raise UsageError(
        f"{out} holds files that this toolkit did not make (it has no {MARKER}), and an artifact replaces its folder "
        "whole. Name another folder, or remove this one yourself."
    )


def _hidden(place: Path, token: str, kind: str) -> Path:
    return place.with_name(f".{place.name}.{token}.{kind}")


def _make_parents(parent: Path, out: Path) -> list[Path]:
    """Makes missing parent folders; returns them, the innermost first."""
    missing = []
    folder = parent
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise _cannot(out, error) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _token(place: Path, out: Path) -> Iterator[str]:
    """Gives a name for this run's hidden files, its lock held until the block ends."""
    lock = None
    while lock is None:  # another run may sweep a lock file between its making and its locking
        token = secrets.token_hex(4)
        try:
            lock = Lock.create(_hidden(place, token, "lock"))
        except OSError as error:
            raise _cannot(out, error) from error
    try:
        yield token
    finally:
        lock.remove()


def _sweep(place: Path) -> None:
    """Clears what killed runs left. Locks are made first and removed last: a folder without one has no owner."""
    prefix = f".{place.name}."
    found = (n.removeprefix(prefix).split(".") for n in os.listdir(place.parent) if n.startswith(prefix))
    kinds = ("lock", "staged", "old")
    for token in sorted({parts[0] for parts in found if len(parts) == 2 and parts[1] in kinds and len(parts[0]) == 8}):
        path = _hidden(place, token, "lock")
        lock = Lock.take_over(path)
        if lock is None and os.path.lexists(path):
            continue  # its owner lives
        try:
            _clear(place, token)
        finally:
            if lock:
                lock.remove()


def _clear(place: Path, token: str) -> None:
    """Puts the old folder of a run back where neither it nor the new one is in place, and removes the rest."""
    old = _hidden(place, token, "old")
    if old.exists() and not os.path.lexists(place):
        with contextlib.suppress(OSError):
            os.rename(old, place)
    for left in (old, _hidden(place, token, "staged")):
        shutil.rmtree(left, ignore_errors=True)


def _swap(stage: Path, place: Path, token: str) -> None:
    """Puts `stage` in the place of `place`; afterwards the old folder has a hidden name, for `_clear`."""
    if not _take_free(stage, place) and not exchange(stage, place):
        os.rename(place, _hidden(place, token, "old"))
        os.rename(stage, place)
    _sync_one(place.parent)


def _take_free(stage: Path, place: Path) -> bool:
    """Returns whether nothing was at `place`, so that `stage` could simply go there."""
    if os.path.lexists(place):
        return False
    try:
        os.rename(stage, place)
    except OSError:
        if os.path.lexists(place):  # another run was faster
            return False
        raise
    return True


def _sync(folder: Path) -> None:
    """Writes a folder's files to the disk: a rename must not arrive there before what it renames."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                _sync_one(path)
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(out: Path, below: Path | None = None) -> Iterator[None]:
    """Turns what the disk refuses (below a folder, where one is given) into a UsageError about `out`."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | os.PathLike) else None
        ours = below is None or (named is not None and Path(named).is_relative_to(below))
        denied = below is None or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if error.errno in _FULL or (ours and denied):
            raise _cannot(out, error) from error
        raise


def _cannot(out: Path, error: OSError) -> UsageError:
    cure = "free some space, or name a folder on another disk" if error.errno in _FULL else "name another folder"
    return UsageError(f"{out} cannot be written: {error.strerror}; {cure}.")
