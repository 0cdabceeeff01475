"""`engines ls|show|gc`, and what `build` says about the cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_models

from engines.gpus import gpus
from export import cli

pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed (there is no wheel for this system)")
ROOT = Path(__file__).parents[2]
WORDS = ["--target", "tensorrt-rtx", "--shapes", "batch=1:2:3,length=1:6:9", "--no-verify"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with engines for SM 89 and 120, and the folder of the build that filled it."""
    place = tmp_path_factory.mktemp("filled")
    model = small_models.save(small_models.attention("float16"), place / "net.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNPROOF_CACHE", str(place / "cache"))
        assert cli.main(["build", str(model), "-o", str(place / "o"), "--sm", "89,120", *WORDS]) == 0
    return place


@pytest.fixture
def place(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(filled, tmp_path / "copy")
    monkeypatch.setenv("ATTNPROOF_CACHE", str(tmp_path / "copy/cache"))
    return tmp_path / "copy"


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["engines", *words]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return json.loads(said(capsys, "ls", "--json"))["engines"]


def test_another_folder_takes_the_engines_from_the_cache(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(place / "net.onnx"), "-o", str(place / "other"), "--sm", "89", *WORDS]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "cache     SM 89: hit: entry " in err
    assert "s, cached" in out
    built, again = (json.loads((place / f / "engine.json").read_text())["engines"] for f in ("o", "other"))
    assert again[0] == built[0]
    assert json.loads((place / "other/report.json").read_text())["engines"][0]["cached"] is True
    assert (place / "other/model.89.engine").read_bytes() == (place / "o/model.89.engine").read_bytes()
    layers = [json.loads((place / f / "layers.json").read_text())["engines"] for f in ("o", "other")]
    assert layers[1][0] == layers[0][0]
    assert cli.main(["check", str(place / "other")]) == 0
    capsys.readouterr()
    words[2:4] = ["-o", str(place / "third")]
    assert cli.main([*words, "--no-cache"]) == 0
    assert "SM 89: hit" not in capsys.readouterr().err
    assert cli.main([*words, "--force"]) == 0
    assert "cache     SM 89: miss: a build from scratch was asked for" in capsys.readouterr().err


def test_builds_at_once_with_the_real_builder_and_one_killed(filled: Path, tmp_path: Path, capsys) -> None:
    environment = {**os.environ, "ATTNPROOF_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def start(out: str) -> "subprocess.Popen[str]":
        words = ["build", str(filled / "net.onnx"), "-o", str(tmp_path / out), "--sm", "89", *WORDS]
        command = [sys.executable, "-m", "export", *words]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    killed = start("killed")
    for line in killed.stderr:  # its engine is being built
        if line.startswith("lower"):
            break
    both = [start("same"), start("same")]
    killed.kill()
    killed.communicate(timeout=60)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    built = sum("cache     SM 89: miss" in text for text in said)
    taken = sum("cache     SM 89: hit" in text or "is up to date" in text for text in said)
    assert built <= 1, "where the killed one was quick, nobody else built it"
    assert built + taken == 2, said
    assert cli.main(["check", str(tmp_path / "same")]) == 0
    assert said_by_gc(tmp_path / "cache", capsys) == 1


def said_by_gc(cache: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Clears what is left, and returns how many engines are there; there must be nothing but them."""
    capsys.readouterr()
    assert cli.main(["engines", "gc", "--cache", str(cache / "engines"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["removed"] == []
    assert all(len(p.name) == 64 for p in (cache / "engines").iterdir())
    return int(done["entries"])


def test_ls(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "ls")
    assert [line.split()[1] for line in text.splitlines()[2:4]] == ["net", "net"]
    assert "2 engines, " in text.splitlines()[-1]
    assert {(e["sm"], e["label"], e["vendor"]) for e in listed(capsys)} == {
        (89, "net", "tensorrt-rtx"), (120, "net", "tensorrt-rtx")
    }  # fmt: skip
    assert said(capsys, "ls", "--cache", str(place / "none")).startswith("0 engines, 0 B")


def test_show_an_entry_or_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = next(e["key"] for e in listed(capsys) if e["sm"] == 120)
    text = said(capsys, "show", key[:10])
    assert "\nSM            120\n" in text
    assert "\nprofile       batch=1:2:3, length=1:6:9\n" in text
    if not gpus().found:
        assert "runs here: no: " in text
        assert "was built with tensorrt-rtx " in text
    shown = json.loads(said(capsys, "show", str(place / "o/model.89.engine"), "--json"))
    assert (shown["sm"], shown["entry"]) == (89, None)
    (place / "o/model.89.engine").write_bytes(b"another")
    assert "its sha256 differs" in said(capsys, "show", str(place / "o/model.89.engine"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show"], "show wants one engine"),
        (["show", "zz"], "There is no one engine 'zz'"),
        (["ls", "x"], "engines ls was given 'x'"),
        (["ls", "--all"], "--all is for engines gc"),
        (["gc", "--max-size", "much"], "'much' is no size; write 20GiB"),
    ],
)
def test_refusals(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert sentence in said(capsys, *words, code=2)


def test_an_edited_record_is_not_believed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "o/engine.json"
    path.write_text(path.read_text().replace('"sm": 89', '"sm": 86', 1))
    assert "its own sha256 differs" in said(capsys, "show", str(place / "o/model.89.engine"), code=2)


def test_gc(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 engines, 0 B, removed; 2 engines" in said(capsys, "gc")
    one, two = listed(capsys)
    for entry, age in ((one, 3), (two, 40)):
        path = place / "cache/engines" / entry["key"] / "engine.json"
        stamp = path.stat().st_mtime - age * 86400
        os.utime(path, (stamp, stamp))
    assert f"would go: {two['key'][:12]}" in said(capsys, "gc", "--older-than", "30", "--dry-run")
    assert len(listed(capsys)) == 2
    assert f"would go: {two['key'][:12]}" in said(capsys, "gc", "--max-size", str(one["size"]), "--dry-run")
    assert "it was not used for 40 days" in said(capsys, "gc", "--older-than", "30")
    path = place / "cache/engines" / one["key"] / "engine.json"
    path.write_text(path.read_text().replace("float16", "float32", 1))
    assert f"{one['key'][:12]}: damaged; engines gc removes it" in said(capsys, "ls")
    assert "is damaged; `engines gc` removes it" in said(capsys, "show", one["key"], code=2)
    assert "it is damaged" in said(capsys, "gc")
    assert list((place / "cache/engines").iterdir()) == []


def test_gc_removes_what_another_version_built(place: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from engines import vendor

    real = vendor.load("tensorrt-rtx")
    monkeypatch.setattr(vendor, "load", lambda name: dataclasses.replace(real, version="9.9"))
    assert "it is of tensorrt-rtx 1." in said(capsys, "gc")
    assert listed(capsys) == []
