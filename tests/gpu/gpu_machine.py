"""Where the GPU tests run: a GPU or, with `--gpu-on-cpu`, the CPU in its place, so that their own code is tested."""

from dataclasses import dataclass

import pytest

from engines import compute_capability, vendor
from engines.errors import BackendMissingError, UsageError
from engines.providers import PROVIDERS

FORM_DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Machine:
    """What stands in for "the GPU" in a test.

    Attributes:
        device: PyTorch's name of it.
        provider: ONNX Runtime's provider, by our name.
        sm: Compute capability to build for.
        real: Whether it is a GPU.
    """

    device: str
    provider: str
    sm: int
    real: bool

    @property
    def ort(self) -> str:
        """ONNX Runtime's own name of the provider."""
        return PROVIDERS[self.provider].ort


def here(on_cpu: bool) -> Machine:
    """Returns the machine of this run."""
    import torch

    if on_cpu:
        return Machine("cpu", "cpu", 89, False)
    major, minor = torch.cuda.get_device_capability(0)
    return Machine("cuda", "cuda", 10 * major + minor, True)


def opened(content: bytes, machine: Machine):
    """Returns a session that computes on the machine's provider and nowhere else, or skips the test with the reason."""
    pytest.importorskip("onnxruntime", reason="NOT RUN: ONNX Runtime is not installed")
    from engines.ort_runner import OrtRunner

    try:
        runner = OrtRunner(content, machine.provider, threads=1 if machine.provider == "cpu" else None)
    except BackendMissingError as error:
        pytest.skip(f"NOT RUN: {error}")
    assert runner.providers[0] == machine.ort
    return runner


def require(target: str, sm: int, dtype: str) -> None:
    """Skips the test where the vendor is not here, or does not build for the GPU."""
    try:
        compute_capability.require(vendor.load(target), sm)
        compute_capability.refuse_dtypes(sm, [{"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[dtype]])
    except (BackendMissingError, UsageError) as error:
        pytest.skip(f"NOT RUN: {error}")
