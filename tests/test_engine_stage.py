"""Building several architectures at once: one failure stops the others and is the error; progress is for terminals."""

import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_models

from engines.build import Progress
from engines.profiles import Profile
from export import engine_stage
from export.errors import EngineBuildError
from export.spec import Spec

ROOT = Path(__file__).parents[1]
PROFILE = Profile({}, {})


def plan(*sms: int) -> SimpleNamespace:
    return SimpleNamespace(spec=Spec(target="tensorrt-rtx", sm=sms), vendor=object())


def built(sm: int) -> SimpleNamespace:
    engine = SimpleNamespace(sm=sm, seconds=1.0, size=2048, attentions={})
    return SimpleNamespace(engine=engine, hit=False, why="")


def test_engines_come_in_the_order_of_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_stage, "obtain", lambda model, out, *, sm, **rest: built(sm))
    made = engine_stage.build_engines(plan(120, 89), tmp_path / "m.onnx", PROFILE, tmp_path)
    assert [obtained.engine.sm for obtained in made] == [120, 89]


def test_a_failure_stops_the_others_and_is_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = threading.Barrier(2)
    stopped = []

    def build(model, out, *, sm, on_progress, **rest):
        both.wait(10)
        if sm == 120:
            raise EngineBuildError("no kernel for SM 120")
        deadline = time.monotonic() + 10
        try:
            while time.monotonic() < deadline:
                on_progress(Progress("Building", 1, 2))
                time.sleep(0.01)
        except Exception:
            stopped.append(sm)
            raise
        return built(sm)

    monkeypatch.setattr(engine_stage, "obtain", build)
    monkeypatch.setattr(engine_stage.os, "cpu_count", lambda: 2)
    with pytest.raises(EngineBuildError, match="no kernel for SM 120"):
        engine_stage.build_engines(plan(89, 120), tmp_path / "m.onnx", PROFILE, tmp_path)
    assert stopped == [89]


def test_a_target_without_engines_builds_none(tmp_path: Path) -> None:
    nothing = SimpleNamespace(spec=Spec(target="ort"), vendor=None)
    assert engine_stage.build_engines(nothing, tmp_path / "m.onnx", PROFILE, tmp_path) == ()


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    model = small_models.save(small_models.attention("float16"), tmp_path / "m.onnx")
    words = ["build", str(model), "-o", str(tmp_path / "o"), "--target", "tensorrt-rtx", "--sm", "89", "--force"]
    words += ["--shapes", "batch=1:2:3,length=1:6:9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    keyboard, screen = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "export", *words], stdout=subprocess.PIPE, stderr=screen, env=environment
    )
    os.close(screen)
    shown = b""
    while True:
        try:
            part = os.read(keyboard, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(keyboard)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"build SM 89" in shown and b"parity" in shown
    assert b"\x1b[?25h" in shown, "the cursor is shown again"
    assert b"\x1b" not in out
    piped = subprocess.run([sys.executable, "-m", "export", *words], capture_output=True, env=environment)
    assert b"\x1b" not in piped.stderr
    assert b"\r" not in piped.stderr
