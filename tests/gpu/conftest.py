"""The machine that every GPU test takes, and a place for what it measures."""

import gpu_machine
import pytest


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> gpu_machine.Machine:
    """Returns the GPU, or the CPU in its place."""
    return gpu_machine.here(request.config.getoption("--gpu-on-cpu"))
