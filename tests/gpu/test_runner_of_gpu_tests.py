"""`make gpu` itself, with the CPU in the GPU's place: the tests' own code runs, and what it finds is written down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_gpu

ROOT = Path(__file__).parents[2]


def made(*words: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "run_gpu.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ.copy())
    return done.returncode, done.stdout + done.stderr


def test_every_group_runs_with_the_cpu_in_the_gpus_place(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    forms = "gpt-causal and fp32 or gpt-causal and fp16 and rtx"
    only = f"{forms} or plain or no_key or (driver and 16)"
    groups = ["plugin", "decode", "onnxruntime fp32", "tensorrt-rtx fp16"]
    code, said = made(*groups, "--on-cpu", "--only", only, "-o", str(out), "--jobs", "1")
    results = json.loads(out.read_text())
    found = {g["group"]: {t["outcome"] for t in g["tests"]} for g in results["groups"]}
    assert code == 0, said
    assert found["plugin"] == found["onnxruntime fp32"] == {"passed"}
    assert "passed" in found["decode"] and found["decode"] | found["tensorrt-rtx fp16"] <= {"passed", "skipped"}
    ratios = [t["measured"] for g in results["groups"] if g["group"] == "onnxruntime fp32" for t in g["tests"]]
    assert all(0 < r["fused error/budget"] < 1 for r in ratios)
    assert {"torch", "triton"} <= set(results["versions"]) and results["machine"]["python"]


def test_without_a_gpu_everything_is_not_run_and_says_why(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("says what happens without a GPU, and this machine has one")
    code, said = made("runners", "-o", str(tmp_path / "gpu.json"))
    assert (code, said.splitlines()[-1]) == (0, "NOT RUN: no GPU test ran here")
    assert "sees no NVIDIA GPU on this machine" in said


def test_a_group_that_crashes_or_hangs_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tmp_path / "test_trial.py"
    trial.write_text(
        "import os, time, pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_crash(): os.abort()\n"
        "def test_hang(): time.sleep(60)\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    monkeypatch.setattr(
        run_gpu, "GROUPS", {name: (str(trial), f"test_{name}") for name in ("good", "wrong", "crash", "hang")}
    )
    more = ["-c", str(ROOT / "pyproject.toml"), "--confcutdir", str(tmp_path), "--gpu-on-cpu"]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}")
    groups = {name: run_gpu.run(name, tmp_path, more, 5 if name == "hang" else 100) for name in run_gpu.GROUPS}
    assert {name: run_gpu.failed(group) for name, group in groups.items()} == {
        "good": False, "wrong": True, "crash": True, "hang": True,
    }  # fmt: skip
    assert groups["crash"]["ended"] == "crashed with signal 6" and groups["hang"]["ended"] == "stopped after 5 s"
    assert "assert 1 == 2" in groups["wrong"]["tests"][0]["why"]


def test_what_a_bare_machine_lacks_is_packed_and_imports(tmp_path: Path) -> None:
    run_gpu.pack(tmp_path)
    code = "import pytest, onnx_ir, onnx_shape_inference; print(pytest.__file__, onnx_ir.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.count(str(tmp_path)) == 2
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size < 24 << 20, "it travels to the machine"
