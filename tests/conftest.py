"""What every test shares: one thread for each library, and GPU tests skipped with a reason where there is none."""

import argparse
import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

# A shell in the background starts its commands deaf to Ctrl-C, and what tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before any test imports torch or ONNX Runtime; the subprocesses that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import stubbed_tensorrt


def pytest_configure(config: pytest.Config) -> None:
    """Gives the tests an engine cache of their own: the user's would hide builds, and keep what they build."""
    os.environ["ATTNPROOF_CACHE"] = tempfile.mkdtemp(prefix="attnproof-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["ATTNPROOF_CACHE"], ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what only the GPU tests' own runner and their own test use."""
    parser.addoption("--gpu-on-cpu", action="store_true", help=argparse.SUPPRESS)
    parser.addoption("--gpu-tests-with", default="", help=argparse.SUPPRESS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts = config.getoption("--gpu-tests-with").split(",")
    items[:] = [item for item in items if all(part in item.nodeid for part in parts)]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _no_gpu() if marked and not config.getoption("--gpu-on-cpu") else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return f"NOT RUN: torch {torch.__version__} sees no NVIDIA GPU on this machine"


@pytest.fixture(scope="session", autouse=True)
def every_report_keeps_its_schema() -> Iterator[None]:
    """Holds every report.json that a test makes in this process against the schema in the repository."""
    import json

    from export.report import record

    written, patch = record.Report.as_json, pytest.MonkeyPatch()

    @functools.wraps(written)
    def checked(self: record.Report) -> dict[str, Any]:
        import jsonschema

        from export.report.schemas import schema
        from export.report.stdout import finite

        content = written(self)
        jsonschema.validate(json.loads(json.dumps(finite(content))), schema("report"))
        return content

    patch.setattr(record.Report, "as_json", checked)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tensorrt_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns an environment in which `import tensorrt` finds the real bindings over stubbed libraries."""
    try:
        return stubbed_tensorrt.install(tmp_path_factory.mktemp("tensorrt"))
    except stubbed_tensorrt.NotHereError as error:
        pytest.skip(f"NOT RUN: {error}")
