"""What is said about a machine follows from trials; the machines here are made up, the last test's is real."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engines import environment, providers
from engines.environment import INSTALL, SMS_WITHOUT_GPU, default_sms, default_target, targets, versions
from engines.errors import BackendMissingError, UsageError
from engines.gpus import Gpu, Gpus, ask, gpus
from engines.providers import PROVIDERS, Trial, sentence, trial, try_provider
from engines.vendor import Vendor

NONE = Gpus((), None, "no NVIDIA driver is installed (libcuda.so.1 is not found)")
ADA = Gpu("NVIDIA L4", 89, 24 << 30)
HOPPER = Gpu("NVIDIA H200", 90, 140 << 30)
YES = Trial(True, "ran it", {"sms": [80, 89, 120]})


def machine(monkeypatch: pytest.MonkeyPatch, *found: Gpu, tensorrt: bool = False) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: Gpus(found, "13.0", None if found else "there is none"))

    def load(name: str) -> Vendor:
        if name == "tensorrt" and not tensorrt:
            raise BackendMissingError("TensorRT is not installed.")
        return Vendor(name, name, None, "1", None if name == "tensorrt" else (80, 89, 120), False, "")

    monkeypatch.setattr(environment.vendor, "load", load)


class TestDefaults:
    def test_without_a_gpu(self, monkeypatch) -> None:
        machine(monkeypatch, tensorrt=True)
        assert (default_target(), default_sms()) == ("tensorrt-rtx", (89, 120))

    def test_with_a_gpu_and_no_tensorrt(self, monkeypatch) -> None:
        machine(monkeypatch, ADA, ADA)
        assert (default_target(), default_sms()) == ("tensorrt-rtx", (89,))

    def test_with_both(self, monkeypatch) -> None:
        machine(monkeypatch, HOPPER, ADA, tensorrt=True)
        assert (default_target(), default_sms()) == ("tensorrt", (90,))

    def test_a_gpu_that_rtx_does_not_know_still_gives_engines(self, monkeypatch) -> None:
        machine(monkeypatch, HOPPER)
        assert default_sms("tensorrt-rtx") == SMS_WITHOUT_GPU
        machine(monkeypatch, HOPPER, ADA)
        assert default_sms("tensorrt-rtx") == (89,)

    def test_a_missing_builder_is_left_to_the_build_to_report(self, monkeypatch) -> None:
        machine(monkeypatch, HOPPER)
        assert default_sms("tensorrt") == (90,)


class TestTargets:
    RUNS = {name: Trial(name == "cpu", "ran it" if name == "cpu" else "cannot load lib", {}) for name in PROVIDERS}  # noqa: RUF012

    def of(
        self, seen: Gpus, built: Trial, torch_cuda: Trial | None = None
    ) -> dict[str, tuple[bool, bool, str, str | None]]:
        rows = targets(seen, self.RUNS, {"tensorrt-rtx": built, "tensorrt": built}, torch_cuda)
        return {t.name: (t.builds, t.runs, t.why, t.remedy) for t in rows}

    def test_without_a_gpu_rtx_builds_and_does_not_run(self) -> None:
        rows = self.of(NONE, YES)
        assert rows["onnx"] == rows["ort"] == (True, True, "ONNX Runtime runs it on cpu.", None)
        builds, runs, why, remedy = rows["tensorrt-rtx"]
        assert (builds, runs) == (True, False)
        assert "no NVIDIA driver is installed" in why
        assert remedy and "machine with an NVIDIA GPU" in remedy

    def test_what_does_not_load_gives_its_pip_line(self) -> None:
        built = Trial(False, "TensorRT is not installed. Install it: pip install 'attnproof[tensorrt]' (GBs)", {})
        assert self.of(NONE, built)["tensorrt"] == (False, False, "TensorRT is not installed.", INSTALL["tensorrt"])

    def test_gpu_of_an_sm_the_builder_does_not_know(self) -> None:
        builds, runs, why, _ = self.of(Gpus((HOPPER,), "13.0", None), YES)["tensorrt-rtx"]
        assert (builds, runs) == (True, False)
        assert "not for the GPU here, SM 90" in why

    def test_gpu_without_cuda_in_pytorch(self) -> None:
        seen = Gpus((ADA,), "13.0", None)
        builds, runs, why, remedy = self.of(seen, YES, Trial(False, "2.13.0+cpu is a CPU build", {}))["tensorrt-rtx"]
        assert (builds, runs) == (True, False)
        assert "PyTorch 2.13.0+cpu is a CPU build" in why
        assert remedy and "CUDA build of PyTorch" in remedy

    def test_all_there(self) -> None:
        seen = Gpus((ADA,), "13.0", None)
        assert self.of(seen, YES, YES)["tensorrt-rtx"][:2] == (True, True)
        assert self.of(seen, YES, YES)["tensorrt-rtx"][3] is None

    def test_a_broken_onnx_runtime(self) -> None:
        runs = {name: Trial(False, "crashed the process (signal 11)", {}) for name in PROVIDERS}
        row = targets(NONE, runs, {"tensorrt-rtx": YES, "tensorrt": YES}, None)[1]
        assert (row.builds, row.runs) == (True, False)
        assert "signal 11" in row.why
        assert row.remedy == PROVIDERS["cpu"].remedy


class Driver:
    """A CUDA driver in Python: cuInit's status and a list of GPUs; ctypes.byref arguments are written through."""

    def __init__(self, status: int = 0, *found: Gpu) -> None:
        self.status, self.found = status, found

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDriverGetVersion(self, version) -> int:
        version._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(self.found)
        return 0

    def cuDeviceGet(self, device, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, device) -> int:
        value._obj.value = {75: self.found[device.value].sm // 10, 76: self.found[device.value].sm % 10}[attribute]
        return 0

    def cuDeviceGetName(self, buffer, size: int, device) -> int:
        buffer.value = self.found[device.value].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory, device) -> int:
        memory._obj.value = self.found[device.value].memory
        return 0


class TestGpus:
    def test_read_off_the_driver(self) -> None:
        assert ask(Driver(0, ADA, HOPPER)) == Gpus((ADA, HOPPER), "12.8", None)

    @pytest.mark.parametrize(("status", "words"), [(100, "finds no GPU"), (0, "finds no GPU"), (999, "returned 999")])
    def test_a_driver_without_a_gpu(self, status: int, words: str) -> None:
        seen = ask(Driver(status))
        assert (seen.found, seen.cuda) == ((), "12.8")
        assert words in (seen.reason or "")

    def test_no_driver(self, monkeypatch) -> None:
        def missing(name: str) -> None:
            raise OSError(name)

        monkeypatch.setattr(ctypes, "CDLL", missing)
        seen = gpus.__wrapped__()
        assert seen.found == ()
        assert "no NVIDIA driver is installed" in (seen.reason or "")


class TestTrial:
    def fake(self, monkeypatch, stdout: str = "", stderr: str = "", code: int = 0) -> Trial:
        done = subprocess.CompletedProcess([], code, stdout, stderr)
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
        return trial("provider", "cuda")

    def test_the_answer_is_the_last_line(self, monkeypatch) -> None:
        answer = json.dumps({"works": True, "reason": "ran it", "detail": {"version": "1"}})
        assert self.fake(monkeypatch, f"EP Error\nnoise\n{answer}\n") == Trial(True, "ran it", {"version": "1"})

    def test_the_log_gives_the_cause(self, monkeypatch) -> None:
        answer = json.dumps({"works": False, "reason": "fell back", "detail": {}})
        log = "2026 [E] Failed to load library x.so with error: libcublas.so.13: cannot open\n"
        assert self.fake(monkeypatch, answer, log).reason == "fell back: libcublas.so.13: cannot open"

    def test_a_crash_is_an_answer(self, monkeypatch) -> None:
        assert "crashed the process (signal 11)" in self.fake(monkeypatch, code=-11).reason
        assert not self.fake(monkeypatch, code=-11).works

    def test_no_answer(self, monkeypatch) -> None:
        seen = self.fake(monkeypatch, "half a li", "ImportError: no onnx", 1)
        assert (seen.works, seen.reason) == (False, "ended without an answer (exit 1): ImportError: no onnx")

    def test_a_hang_is_stopped(self, monkeypatch, tmp_path) -> None:
        hangs = tmp_path / "python"
        hangs.write_text("#!/bin/sh\nexec sleep 30\n")
        hangs.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(hangs))
        seen = trial("provider", "cuda", seconds=0.2)
        assert (seen.works, seen.reason) == (False, "did not answer within 0.2 s")

    def test_unknown_provider(self) -> None:
        with pytest.raises(UsageError, match="choose one of cpu, cuda"):
            try_provider("gpu")

    def test_onnx_runtimes_words_are_made_a_sentence(self) -> None:
        raw = "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/a/b.cc:729 void f::G(X&, Y) Please install Z.\nmore"
        assert sentence(RuntimeError(raw)) == "Please install Z"
        assert sentence(ValueError("")) == "no message"


def test_versions_come_from_metadata() -> None:
    import numpy

    found = versions()
    assert found["numpy"] == numpy.__version__
    assert "tensorrt" in found


@pytest.mark.parametrize("folder", [None, Path("/nowhere/at/all")])
def test_survey_of_this_machine(folder: Path | None) -> None:
    seen = environment.survey(folder)
    assert seen.providers["cpu"].works
    assert seen.providers["cpu"].reason == "ran a MatMul there, with the right result"
    for name in ("cuda", "tensorrt"):
        assert seen.providers[name].works or len(seen.providers[name].reason) > 10
    if not gpus().found:
        assert not seen.providers["cuda"].works
        assert seen.torch_cuda is None
        assert seen.default_sms == SMS_WITHOUT_GPU
    assert [t.name for t in seen.targets] == ["onnx", "ort", "tensorrt-rtx", "tensorrt"]
    assert all(t.remedy is None or t.why for t in seen.targets)
    assert all(free > 0 for free in seen.disk.values())
    if seen.packages["tensorrt-rtx"]:
        assert seen.builders["tensorrt-rtx"].reason == "built a one-layer engine"
        assert seen.builders["tensorrt-rtx"].detail["sms"]


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, engines.environment, engines.runners; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "onnx", "onnxruntime", "tensorrt_rtx", "tensorrt"} & set(loaded)
    assert providers.PROBE_SECONDS > 0
