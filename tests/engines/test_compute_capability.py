"""Architectures as users write them, and which ones a builder takes here."""

from types import SimpleNamespace

import pytest

from engines import compute_capability
from engines.compute_capability import parse, refuse_dtypes, require
from engines.errors import BackendMissingError, UsageError
from engines.gpus import Gpu, Gpus
from engines.vendor import Vendor

RTX = Vendor("tensorrt-rtx", "TensorRT-RTX", SimpleNamespace(), "1.7", (75, 89), False, "runtime")
FULL = Vendor("tensorrt", "TensorRT", SimpleNamespace(), "11.4", None, True, "timing")


@pytest.mark.parametrize(
    ("text", "sms"),
    [("89", (89,)), ("89,120", (89, 120)), ("sm89, SM_120", (89, 120)), ("8.9,12.0", (89, 120)), ("80,80", (80,))],
)
def test_parse(text: str, sms: tuple[int, ...]) -> None:
    assert parse(text) == sms


@pytest.mark.parametrize("text", ["", "ada", "8", "89,", "8.95", "-89", "8.9.1", "1200", "٨٩"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is no compute capability: write --sm 89,120"):
        parse(text)


def test_rtx_takes_what_it_lists() -> None:
    require(RTX, 89)
    with pytest.raises(UsageError, match=r"SM 90 \(Hopper\); it knows 75 \(Turing\), 89 \(Ada\)\."):
        require(RTX, 90)


def test_tensorrt_takes_the_gpu_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_capability, "gpus", lambda: Gpus((Gpu("H200", 90, 1), Gpu("L4", 89, 1)), "13.0", None))
    require(FULL, 90)
    with pytest.raises(UsageError, match="the GPU it runs on, SM 90, not for SM 89"):
        require(FULL, 89)
    monkeypatch.setattr(compute_capability, "gpus", lambda: Gpus((), None, "no NVIDIA driver is installed"))
    with pytest.raises(BackendMissingError, match=r"no NVIDIA driver is installed\. Build with --target tensorrt-rtx"):
        require(FULL, 90)


def test_bfloat16_starts_with_ampere() -> None:
    refuse_dtypes(80, ["bfloat16", "float16"])
    refuse_dtypes(75, ["float16", "float32", "int64"])
    with pytest.raises(UsageError, match="--dtype fp16, or leave SM 75 out"):
        refuse_dtypes(75, ["float32", "bfloat16"])
