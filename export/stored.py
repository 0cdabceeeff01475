"""Finding one engine, in the cache or in a folder, and deciding which entries of the cache may go."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines import engine_fit, engine_json
from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.gpus import gpus
from engines.store import ENGINE, Entry, Store

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DAY = 86400.0


@dataclass(frozen=True)
class Shown:
    """One engine.

    Attributes:
        path: Its file.
        record: What engine.json says about it.
        entry: Its entry where it is in the cache.
        runs: Whether it runs here.
        why: Why, or why not and what to do; a sentence.
    """

    path: Path
    record: engine_json.Record
    entry: Entry | None
    runs: bool
    why: str


@dataclass(frozen=True)
class Removal:
    """An entry that went, or would: its key, its bytes, and why; `busy` where somebody uses it, so that it stayed."""

    key: str
    size: int
    why: str
    busy: bool = False


@dataclass(frozen=True)
class Collected:
    """What `gc` did: entries, what killed builds had left, and what remains."""

    removed: tuple[Removal, ...]
    swept: int
    entries: int
    size: int
    dry_run: bool


def find(store: Store, which: str) -> Shown:
    """Returns an engine by the beginning of its key, or by its file.

    Raises:
        UsageError: There is none or more than one, or it is not what its engine.json says.
    """
    path = Path(which)
    if path.is_dir() or path.suffix == ".engine" or path.exists():
        return _shown(_file(path), None)
    matching = [key for key in store.every_key() if key.startswith(which.lower())]
    if len(matching) != 1:
        found = f"{len(matching)} entries begin so; give more of the key" if matching else "see: engines ls"
        raise UsageError(f"There is no one engine {which!r} in {store.root}: {found}.")
    entry = next((e for e in store.entries() if e.key == matching[0]), None)
    if entry is None:
        raise UsageError(f"Entry {matching[0]} is damaged; `engines gc` removes it, and the next build writes it anew.")
    return _shown(entry.folder / ENGINE, entry)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    records = engine_json.read_folder(path)
    if len(records) != 1:
        named = ", ".join(str(path / record.file) for record in records) or "none"
        raise UsageError(f"{path} holds {len(records)} engines; name one: {named}.")
    return path / records[0].file


def _shown(path: Path, entry: Entry | None) -> Shown:
    record = engine_json.read(path)
    try:
        engine_json.read_plan(path, record)
        here = engine_fit.installed(record, str(path))
        engine_fit.require_gpu(record, gpus(), 0, str(path))
    except ToolkitError as error:
        return Shown(path, record, entry, False, str(error))
    return Shown(path, record, entry, True, f"{here.title} {here.version} and {gpus().found[0].name} are its own.")


def size(text: str) -> int:
    """Returns bytes, e.g. for "20GiB", "500MB" (the same as MiB) or "1000000".

    Raises:
        UsageError: It is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is no size; write 20GiB or 500MiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def collect(
    store: Store,
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Removes from the cache what cannot be used here any more, and what is asked for besides.

    Args:
        store: The cache.
        older_than: Days since an entry was last used, beyond which it goes.
        max_size: Bytes of engines that may stay; the longest unused go first.
        everything: Remove every entry.
        dry_run: Only say what would go.
    """
    doomed = dict(_doomed(store, older_than, max_size, everything))
    removed = []
    for key, (bytes_, why) in doomed.items():
        busy = not dry_run and not store.remove(key)
        removed.append(Removal(key, bytes_, why, busy))
    swept = 0 if dry_run else store.sweep()
    left = store.entries()
    return Collected(tuple(removed), swept, len(left), sum(entry.size for entry in left), dry_run)


def _doomed(
    store: Store, older_than: float | None, max_size: int | None, everything: bool
) -> Iterator[tuple[str, tuple[int, str]]]:
    entries = store.entries()
    for key in sorted(set(store.every_key()) - {entry.key for entry in entries}):
        yield key, (_bytes(store.root / key), "it is damaged")
    now = time.time()
    kept = 0
    for entry in entries:  # the last used first
        why = "everything was asked for" if everything else _stale(entry)
        if not why and older_than is not None and now - entry.used > older_than * _DAY:
            why = f"it was not used for {(now - entry.used) / _DAY:.0f} days"
        if not why and max_size is not None and kept + entry.size > max_size:
            why = "it is beyond the size that was asked for"
        if why:
            yield entry.key, (entry.size, why)
        else:
            kept += entry.size


def _stale(entry: Entry) -> str:
    try:
        engine_fit.installed(entry.record, entry.key)
    except BackendMissingError:
        return f"it is of {entry.record.vendor} {entry.record.version}, which is not installed here"
    return ""


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
