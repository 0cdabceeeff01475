"""The engine cache: one folder an engine, under the sha256 of everything that decides its bytes.

    ROOT/<key>/model.engine    the engine
    ROOT/<key>/engine.json     what it is, its parts and its sha256; signed (`engines.engine_json`)
    ROOT/<key>/build.json      what the builder said, from which reports are made
    ROOT/<key>.lock            held (flock) by whoever builds, reads or removes the entry

An entry appears whole or not at all (`engines.artifact`), and is believed only if its engine is the one that was
written. Of two processes that want the same engine, one builds and the other waits and finds it. A killed one leaves
its lock to the operating system, and a hidden folder that the next to write there, or `gc`, removes.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import artifact, engine_json
from engines.build import BuiltEngine
from engines.errors import ToolkitError
from engines.lock import Lock

PLACE = "ATTNPROOF_CACHE"
"""The environment variable that names another folder for the cache."""

ENGINE, BUILD = "model.engine", "build.json"


@dataclass(frozen=True)
class Entry:
    """One engine of the cache.

    Attributes:
        folder: Where it lies.
        key: Its folder's name.
        label: What it was built from, in words.
        parts: What decided its bytes.
        record: What engine.json says about it.
        told: sha256 of what its builder said.
        size: Bytes of the engine.
        created: When it was built, in seconds since 1970.
        used: When it was last used.
    """

    folder: Path
    key: str
    label: str
    parts: dict[str, str]
    record: engine_json.Record
    told: str
    size: int
    created: float
    used: float


class Damaged(Exception):
    """An entry is not what was written; the text says how."""


def default_root() -> Path | None:
    """Returns where the cache is: $ATTNPROOF_CACHE, else the user's cache folder; None where there is no home."""
    given = os.environ.get(PLACE)
    if given:
        return Path(given).absolute() / "engines"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    usual = {
        "win32": os.environ.get("LOCALAPPDATA") or home / "AppData/Local",
        "darwin": home / "Library/Caches",
    }.get(sys.platform, os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return Path(usual) / "attnproof" / "engines"


class Store:
    """The cache in one folder, which is made when something is put into it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the entry's lock, waiting for whoever has it.

        Raises:
            OSError: The cache's folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = Lock.wait(self._lock(key), waiting)
        try:
            yield
        finally:
            lock.remove()

    def read(self, key: str) -> tuple[Entry, dict[str, Any]] | None:
        """Returns an entry and what its builder said, or None where there is none.

        Raises:
            Damaged: Its files are not what was written.
        """
        entry = self.look(key)
        if entry is None:
            return None
        try:
            told = (entry.folder / BUILD).read_bytes()
        except OSError as error:
            raise Damaged(f"its {BUILD} cannot be read ({error.strerror})") from error
        if engine_json.digest_of(told) != entry.told:
            raise Damaged(f"its {BUILD} was edited")
        return entry, json.loads(told)

    def look(self, key: str) -> Entry | None:
        """Returns an entry from its engine.json alone, which is quick; None where there is none.

        Raises:
            Damaged: That file is not what was written.
        """
        folder = self.root / key
        if not os.path.lexists(folder):
            return None
        try:
            content = json.loads((folder / engine_json.NAME).read_text(encoding="utf-8"))
            if content[engine_json.SEAL] != engine_json.seal(content) or content["key"] != key:
                raise Damaged("its engine.json was edited")
            return _entry(folder, content)
        except (OSError, ValueError, KeyError, TypeError, ToolkitError) as error:
            raise Damaged(f"it cannot be read ({type(error).__name__}: {error})") from error

    def fetch(self, entry: Entry, out: Path) -> None:
        """Copies the engine of an entry to `out`, whole.

        Raises:
            Damaged: It is not the file that was written.
            OSError: `out` cannot be written.
        """
        temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
        try:
            shutil.copyfile(entry.folder / ENGINE, temporary)
            if engine_json.digest(temporary) != entry.record.sha256:
                raise Damaged(f"its {ENGINE} is not the file that was written (the sha256 differs)")
            os.replace(temporary, out)
        except FileNotFoundError as error:
            raise Damaged(f"its {ENGINE} is missing") from error
        finally:
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.utime(entry.folder / engine_json.NAME)  # when it was last used

    def put(self, key: str, parts: Mapping[str, str], label: str, built: BuiltEngine) -> None:
        """Keeps an engine that was just built.

        Raises:
            UsageError, OSError: The cache's folder is full or cannot be written.
        """
        told = {
            "built": {
                "vendor": built.vendor,
                "version": built.version,
                "sm": built.sm,
                "seconds": built.seconds,
                "size": built.size,
                "memory": built.memory,
                "inputs": {t.name: t.dtype for t in built.inputs},
                "outputs": {t.name: t.dtype for t in built.outputs},
                "shapes": {t.name: [_size(d) for d in t.shape] for t in (*built.inputs, *built.outputs)},
            },
            "log": built.messages,
        }
        text = json.dumps(told)
        with artifact.staged(self.root / key) as folder:
            shutil.copyfile(built.path, folder / ENGINE)
            (folder / BUILD).write_text(text, encoding="utf-8")
            content: dict[str, Any] = {
                "schema": engine_json.SCHEMA,
                "key": key,
                "label": label,
                "created": time.time(),
                "parts": dict(parts),
                "told": engine_json.digest_of(text.encode()),
                "engines": [{**engine_json.entry(built), "file": ENGINE}],
            }
            sealed = json.dumps({**content, engine_json.SEAL: engine_json.seal(content)}, indent=2)
            (folder / engine_json.NAME).write_text(sealed + "\n", encoding="utf-8")

    def every_key(self) -> list[str]:
        """Returns the names of the entries, whole ones and damaged ones."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if len(p.name) == 64 and p.is_dir())

    def entries(self) -> list[Entry]:
        """Returns the entries that can be read, the last used first."""
        found = []
        for key in self.every_key():
            with contextlib.suppress(Damaged):
                entry = self.look(key)
                if entry:
                    found.append(entry)
        return sorted(found, key=lambda entry: -entry.used)

    def remove(self, key: str) -> bool:
        """Removes an entry at once; returns False where somebody is using it."""
        path = self._lock(key)
        try:
            lock = Lock.create(path)
        except FileExistsError:
            lock = Lock.take_over(path)
        if lock is None:
            return False
        try:
            self.discard(key)
        finally:
            lock.remove()
        return True

    def discard(self, key: str) -> None:
        """Removes an entry whose lock the caller holds."""
        artifact.remove(self.root / key)

    def sweep(self) -> int:
        """Removes what killed builds left; returns how many entries and locks that were."""
        count = 0
        if not self.root.is_dir():
            return 0
        left = {name[1:65] for name in os.listdir(self.root) if name.startswith(".") and len(name) > 65}
        locks = {
            name.removesuffix(".lock") for name in os.listdir(self.root) if name.endswith(".lock") and name[0] != "."
        }
        for key in sorted(left):
            count += artifact.sweep(self.root / key)
        for key in sorted(locks):
            lock = Lock.take_over(self._lock(key))
            if lock:
                lock.remove()
                count += 1
        return count

    def _lock(self, key: str) -> Path:
        return self.root / f"{key}.lock"


def _size(dimension: int | str) -> int:
    return dimension if isinstance(dimension, int) else -1


def _entry(folder: Path, content: dict[str, Any]) -> Entry:
    (record,) = engine_json.records(content)
    return Entry(
        folder,
        str(content["key"]),
        str(content["label"]),
        dict(content["parts"]),
        record,
        str(content["told"]),
        int(content["engines"][0]["size"]),
        float(content["created"]),
        (folder / engine_json.NAME).stat().st_mtime,
    )
