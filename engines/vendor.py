"""How TensorRT and TensorRT-RTX differ: the only file that imports either, and one table row for each.

Both bindings share their enums (equal values) and almost every signature. What differs is in `Vendor`: RTX compiles for
a list of architectures on any machine, GPU or not, and has no plugins; TensorRT compiles for the GPU it runs on.
Checked against tensorrt_rtx 1.7.1.116 and the tensorrt 11.4.0.106 bindings.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engines.errors import BackendMissingError, EngineBuildError, UsageError

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "FP4": "float4_e2m1fn",
    "E8M0": "float8_e8m0fnu",
}
"""numpy or ml_dtypes name of each member of both vendors' `DataType`."""


@dataclass(frozen=True)
class Vendor:
    """One of the two engine builders, imported.

    Attributes:
        name: What the user types: "tensorrt-rtx" or "tensorrt".
        title: Its name in sentences.
        module: The imported Python module.
        version: Version of the bindings, which is also that of the libraries they load.
        sms: The architectures it compiles for on any machine, e.g. (75, 80, 86, 89, 120, 121); None where it compiles
            only for a GPU that is in this machine.
        plugins: Whether a graph may hold plugin nodes.
        cache: What makes a second build or load faster: a "timing" cache of the builder or a "runtime" cache.
    """

    name: str
    title: str
    module: Any
    version: str
    sms: tuple[int, ...] | None
    plugins: bool
    cache: str

    def logger(self, sink: Callable[[str, str], None]) -> Any:
        """Returns an ILogger that hands every message to `sink(severity, text)`.

        Severities are "INTERNAL_ERROR", "ERROR", "WARNING", "INFO" and "VERBOSE". `sink` must not raise: the caller is
        C++. The logger must outlive everything made with it.
        """
        base = self.module.ILogger

        class Logger(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                sink(severity.name, msg)

        return Logger()

    def progress_monitor(self, sink: Callable[[str, int, int], None]) -> Any:
        """Returns an IProgressMonitor that calls `sink(phase, steps done, steps)`; `sink` must not raise."""
        base = self.module.IProgressMonitor

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)
                self.steps: dict[str, int] = {}  # of the open phases, until their last step is told

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                self.steps[phase_name] = num_steps
                sink(phase_name, 0, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                steps = self.steps.get(phase_name, step + 1)
                sink(phase_name, step + 1, steps)
                if step + 1 >= steps:
                    self.steps.pop(phase_name, None)
                return True  # False would cancel the build

            def phase_finish(self, phase_name: str) -> None:
                steps = self.steps.pop(phase_name, 0)
                if steps:
                    sink(phase_name, steps, steps)

        return Monitor()

    def builder(self, logger: Any) -> Any:
        """Returns an IBuilder.

        Raises:
            BackendMissingError: The library loads but gives no builder, as TensorRT does where there is no GPU.
        """
        try:
            return self.module.Builder(logger)
        except Exception as error:  # pybind11 reports a null pointer as a TypeError
            need = "" if self.sms else " It needs an NVIDIA GPU and its driver; TensorRT-RTX builds without one."
            raise BackendMissingError(
                f"{self.title} {self.version} is installed, but made no builder here: {error}.{need}"
            ) from error

    def network(self, builder: Any) -> Any:
        """Returns an empty strongly typed network: every tensor has the dtype that the ONNX file gives it."""
        flag = self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return builder.create_network(1 << int(flag))

    def register_plugins(self, sm: int) -> None:
        """Makes the plugin operator known to the parser, its kernel compiled for one architecture, e.g. sm=90.

        Raises:
            BackendMissingError: The vendor's Python plugins are missing: they came with TensorRT 10.9.
        """
        try:
            plugin = importlib.import_module(f"{self.module.__name__}.plugin")
        except ImportError as error:
            raise BackendMissingError(f"{self.title} {self.version} has no Python plugins ({error}).") from error
        from plugins.tensorrt_plugin import register

        register(plugin, sm)

    def aim(self, config: Any, sm: int) -> None:
        """Makes `config` compile for one architecture, e.g. sm=89; TensorRT always compiles for the current GPU.

        Raises:
            EngineBuildError: The builder refused the architecture.
        """
        if self.sms is None:
            return
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(self.module.ComputeCapability, f"SM{sm}"), 0):
            raise EngineBuildError(f"{self.title} {self.version} refused to compile for SM {sm}; try another of --sm.")


@dataclass(frozen=True)
class _Row:
    title: str
    package: str
    install: str
    any_machine: bool
    plugins: bool
    cache: str


_ROWS = {
    "tensorrt-rtx": _Row(
        "TensorRT-RTX",
        "tensorrt_rtx",
        "pip install 'tensorrt-rtx>=1.7' (wheels exist for Linux x86-64 and Windows)",
        any_machine=True,
        plugins=False,
        cache="runtime",
    ),
    "tensorrt": _Row(
        "TensorRT",
        "tensorrt",
        "pip install 'attnproof[tensorrt]' (several GB; its libraries come from NVIDIA's own index)",
        any_machine=False,
        plugins=True,
        cache="timing",
    ),
}
NAMES = tuple(_ROWS)


def load(name: str) -> Vendor:
    """Returns the vendor, imported; what takes 0.15 s the first time.

    Args:
        name: "tensorrt-rtx" or "tensorrt".

    Raises:
        UsageError: There is no such vendor.
        BackendMissingError: Its package is not installed, or is but cannot be loaded; the message holds the pip line.
    """
    if name not in _ROWS:
        raise UsageError(f"There is no engine builder {name!r}; choose one of {', '.join(NAMES)}.")
    row = _ROWS[name]
    try:
        module = importlib.import_module(row.package)
    except ModuleNotFoundError as error:
        if error.name == row.package:
            raise BackendMissingError(f"{row.title} is not installed. Install it: {row.install}") from error
        raise _broken(row, error) from error
    except Exception as error:  # a half-installed package fails in many ways: OSError, ImportError, AttributeError
        raise _broken(row, error) from error
    missing = [n for n in ("Builder", "OnnxParser", "ILogger", "__version__") if not hasattr(module, n)]
    if row.any_machine and not hasattr(module, "ComputeCapability"):
        missing.append("ComputeCapability")
    if missing:
        raise _broken(row, AttributeError(f"its module has no {', '.join(missing)}"))
    sms = _architectures(module) if row.any_machine else None
    return Vendor(name, row.title, module, str(module.__version__), sms, row.plugins, row.cache)


def _architectures(module: Any) -> tuple[int, ...]:
    names = module.ComputeCapability.__members__
    return tuple(sorted(int(n[2:]) for n in names if n.startswith("SM") and n[2:].isdecimal()))


def _broken(row: _Row, error: Exception) -> BackendMissingError:
    return BackendMissingError(
        f"{row.title} is installed but cannot be loaded: {type(error).__name__}: {error}. Its libraries are missing or "
        f"of another version than its bindings. Install it whole: {row.install}"
    )
