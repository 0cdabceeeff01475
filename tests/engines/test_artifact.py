"""Artifact folders: whole or not at all, whatever kills the run; never in the place of what is not ours."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engines import artifact
from engines.artifact import MARKER, is_artifact, recover, staged
from engines.errors import UsageError
from engines.lock import Lock

ROOT = Path(__file__).resolve().parents[2]
FILES = 12


def write(folder: Path, version: str) -> None:
    for i in range(FILES):
        (folder / f"{i}.txt").write_text(version)


def version_of(folder: Path) -> str:
    """Returns the version a whole artifact holds; fails on a mixture."""
    assert is_artifact(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([MARKER, *(f"{i}.txt" for i in range(FILES))])
    versions = {(folder / f"{i}.txt").read_text() for i in range(FILES)}
    assert len(versions) == 1
    return versions.pop()


def make(out: Path, version: str) -> None:
    with staged(out) as folder:
        write(folder, version)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_new_folder_appears_whole_with_its_parents(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with staged(out) as folder:
        write(folder, "1")
        assert not out.exists()
        assert folder.parent == out.parent
    assert version_of(out) == "1"
    assert names(out.parent) == ["out"]


def test_an_artifact_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "1")
    (out / "stray.txt").write_text("goes with the folder it is in")
    make(out, "2")
    assert version_of(out) == "2"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out, "1")
    assert version_of(out) == "1"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real", "1")
    link = tmp_path / "link"
    link.symlink_to("real")
    make(link, "2")
    assert link.is_symlink()
    assert version_of(tmp_path / "real") == "2"


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failing_block_leaves_the_old_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    make(out, "1")
    with pytest.raises(type(error)), staged(out) as folder:
        write(folder, "2")
        raise error
    assert version_of(out) == "1"
    with pytest.raises(type(error)), staged(tmp_path / "new" / "deep"):
        raise error
    assert names(tmp_path) == ["out"]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        make(tmp_path / "out", "1")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("marker", [None, "{}", "not json", "[]", '{"artifact": "other"}'])
def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path, marker: str | None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    if marker is not None:
        (out / MARKER).write_text(marker)
    with pytest.raises(UsageError, match="did not make"):
        make(out, "1")
    assert (out / "thesis.tex").read_text() == "years"
    assert names(tmp_path) == ["out"]


def test_a_folder_that_became_somebody_elses_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="did not make"), staged(out) as folder:
        write(folder, "1")
        out.mkdir()
        (out / "thesis.tex").write_text("years")
    assert names(out) == ["thesis.tex"]


@pytest.mark.parametrize("place", ["/dev/null/out", "/proc/out", "/proc/deep/er/out"])
def test_a_place_that_takes_no_folder(place: str) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("NOT RUN: this system has no /proc")
    with pytest.raises(UsageError, match=r"cannot be written: .*name another folder"):
        make(Path(place), "1")


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("NOT RUN: root may write everywhere; /proc stands in for it above")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="Permission denied; name another folder"):
            make(tmp_path / "out", "1")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("NOT RUN: this system has no /dev/full")
    out = tmp_path / "out"
    make(out, "1")
    with pytest.raises(UsageError, match="No space left on device; free some space") as caught, staged(out) as folder:
        (folder / "model.onnx").symlink_to("/dev/full")
        (folder / "model.onnx").write_bytes(b"weights")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert version_of(out) == "1"
    assert names(tmp_path) == ["out"]


def test_an_error_about_other_files_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out"):
        (tmp_path / "missing").read_text()


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(artifact, "exchange", lambda a, b: False)
    return str(request.param)


def test_both_ways_of_swapping(tmp_path: Path, swap: str) -> None:
    for version in "123":
        make(tmp_path / "out", version)
        assert version_of(tmp_path / "out") == version
    assert names(tmp_path) == ["out"]


def test_the_exchange_is_there_on_linux(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("NOT RUN: renameat2 is Linux's")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert artifact.exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        artifact.exchange(tmp_path / "a", tmp_path / "missing")


def test_a_second_rename_that_fails_puts_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    make(out, "1")
    rename = os.rename

    def failing(a: Path, b: Path) -> None:
        if str(a).endswith(".staged"):
            raise OSError(errno.EIO, "Input/output error", str(a), None, str(b))
        rename(a, b)

    monkeypatch.setattr(artifact, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(UsageError, match="Input/output error"):
        make(out, "2")
    assert version_of(out) == "1"
    assert names(tmp_path) == ["out"]


def test_readers_never_see_a_mixture_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "0")
    stop = threading.Event()
    seen: list[str] = []
    broken: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                handle = os.open(out, os.O_RDONLY)  # one folder from here on, whatever takes its name
            except OSError as error:
                broken.append(repr(error))
                continue
            with contextlib.suppress(FileNotFoundError):  # it was replaced and is being removed
                first, last = (_read(handle, f"{i}.txt") for i in (0, FILES - 1))
                seen.append(first)
                if first != last:
                    broken.append(f"{first} beside {last}")
            os.close(handle)

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1, 40):
        make(out, str(version))
    stop.set()
    reader.join()
    assert not broken
    assert seen


def _read(folder: int, name: str) -> str:
    handle = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(handle, 99).decode()
    finally:
        os.close(handle)


_LOOP = """
import sys
from pathlib import Path
from engines import artifact
if sys.argv[2] == "two renames":
    artifact.exchange = lambda a, b: False
print("ready", flush=True)
version = int(sys.argv[3])
while True:
    version += 1
    with artifact.staged(Path(sys.argv[1])) as folder:
        for i in range(12):
            (folder / f"{i}.txt").write_text(str(version))
    print(version, flush=True)
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_sigkill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    make(out, "0")
    generator = random.Random(0)
    version = 0
    swept = 0
    for _ in range(25):
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(out), way, str(version)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
        process.stdout.close()
        if way == "exchange":
            assert out.is_dir()
        swept += len(names(tmp_path)) > 1
        recover(out)
        found = int(version_of(out))
        last = told[-1] if told else version
        assert found in (last, last + 1)  # what it told was there; the next may have come in before it could tell
        version = found
    assert swept > 0  # else no kill ever hit a run at work
    make(out, "end")
    assert names(tmp_path) == ["out"]
    assert version_of(out) == "end"


def test_a_living_run_is_not_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as slow:
        write(slow, "slow")
        make(out, "fast")
        assert version_of(out) == "fast"
        assert (slow / "0.txt").read_text() == "slow"
    assert version_of(out) == "slow"
    assert names(tmp_path) == ["out"]


def test_only_the_hidden_names_of_this_place_are_swept(tmp_path: Path) -> None:
    kept = [".out.staged", ".out.12345678.other", ".other.12345678.staged", "out.12345678.staged", ".out.123.old"]
    for name in [*kept, ".out.12345678.staged"]:
        (tmp_path / name).mkdir()
    make(tmp_path / "out", "1")
    assert names(tmp_path) == sorted([*kept, "out"])


def test_recover_puts_back_what_a_killed_run_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "1")
    out.rename(tmp_path / ".out.12345678.old")
    (tmp_path / ".out.12345678.lock").touch()
    recover(out)
    assert version_of(out) == "1"
    assert names(tmp_path) == ["out"]
    recover(tmp_path / "missing" / "out")


def test_a_lock_is_free_only_when_its_owner_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    lock = Lock.create(path)
    assert lock
    assert Lock.take_over(path) is None
    lock.remove()
    assert Lock.take_over(path) is None
    assert not path.exists()
    path.touch()
    again = Lock.take_over(path)
    assert again
    again.remove()
    assert not path.exists()
