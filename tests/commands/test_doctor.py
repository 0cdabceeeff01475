"""`doctor`: every fact is printed, in words and as JSON, and what is missing is not an error."""

import json

import pytest

from engines.environment import Environment, Target
from engines.gpus import Gpu, Gpus
from engines.providers import PROVIDERS, Trial
from export import cli

YES, NO = Trial(True, "ran it", {}), Trial(False, "fell back: libcublas.so.13: not found", {})


@pytest.fixture(scope="module")
def real() -> dict:
    """The JSON of this machine, from one real survey."""
    from engines.environment import survey
    from export.report import machine

    return json.loads(json.dumps(machine.as_json(survey())))


def made_up(*found: Gpu, torch_cuda: Trial | None = None) -> Environment:
    return Environment(
        python="3.11.7",
        platform="Linux x86_64",
        packages={"torch": "2.13.0", "tensorrt": None},
        gpus=Gpus(found, "13.0" if found else None, None if found else "no NVIDIA driver is installed"),
        providers={name: YES if name == "cpu" else NO for name in PROVIDERS},
        builders={"tensorrt-rtx": YES, "tensorrt": NO},
        torch_cuda=torch_cuda,
        targets=(
            Target("ort", True, True, "ONNX Runtime runs it on cpu.", None),
            Target("tensorrt-rtx", True, False, "It builds; it cannot run.", "find a GPU"),
            Target("tensorrt", False, False, "TensorRT is not installed.", "pip install it"),
        ),
        default_target="tensorrt-rtx",
        default_sms=(89, 120),
        disk={"/work": 3 << 30},
    )


def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen: Environment, *words: str) -> str:
    monkeypatch.setattr("engines.environment.survey", lambda: seen)
    assert cli.main(["doctor", *words]) == 0
    return capsys.readouterr().out


def test_without_a_gpu(monkeypatch, capsys) -> None:
    text = page(monkeypatch, capsys, made_up())
    for line in (
        "Python 3.11.7 on Linux x86_64",
        "GPU: none; no NVIDIA driver is installed.",
        f"To run ONNX Runtime on cuda: {PROVIDERS['cuda'].remedy}.",
        "To run what target tensorrt-rtx builds: find a GPU.",
        "To build for target tensorrt: pip install it.",
        "Without --target and --sm, build takes tensorrt-rtx for SM 89 and 120.",
        "3.0 GiB free in /work",
    ):
        assert line in text.splitlines()
    rows = [line.split() for line in text.splitlines()]
    assert ["tensorrt", "not", "installed"] in rows
    assert ["cpu", "yes", "ran", "it"] in rows
    assert [*["cuda", "no", "fell", "back:", "libcublas.so.13:", "not", "found"]] in rows
    assert "To run ONNX Runtime on cpu" not in text
    assert "target ort" not in text


def test_with_a_gpu(monkeypatch, capsys) -> None:
    text = page(monkeypatch, capsys, made_up(Gpu("NVIDIA L4", 89, 24 << 30), torch_cuda=NO))
    assert "GPU: NVIDIA L4, SM 89, 24 GiB\nThe driver runs CUDA 13.0.\nPyTorch on it: no, fell back" in text


def test_json_of_a_made_up_machine(monkeypatch, capsys) -> None:
    seen = json.loads(page(monkeypatch, capsys, made_up(Gpu("NVIDIA L4", 89, 24 << 30), torch_cuda=YES), "--json"))
    assert seen["gpus"] == [{"name": "NVIDIA L4", "sm": 89, "memory": 24 << 30}]
    assert seen["targets"][1] == {
        "name": "tensorrt-rtx",
        "builds": True,
        "runs": False,
        "why": "It builds; it cannot run.",
        "remedy": "find a GPU",
    }
    assert (seen["no_gpu"], seen["cuda_driver"], seen["pytorch_cuda"]["works"]) == (None, "13.0", True)
    assert (seen["default_target"], seen["default_sms"]) == ("tensorrt-rtx", [89, 120])
    assert seen["disk"] == {"/work": 3 << 30}


def test_this_machine(real: dict) -> None:
    assert real["schema"] == 1
    assert real["packages"]["torch"]
    assert real["providers"]["cpu"]["works"]
    assert {t["name"]: t["builds"] for t in real["targets"]}["ort"]
    assert bool(real["gpus"]) is (real["no_gpu"] is None)
    for name, trial in real["providers"].items():
        assert trial["reason"], name
