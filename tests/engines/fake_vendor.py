"""A TensorRT on the CPU: it computes y = 2 * x at the addresses it is given, and is as strict as the real one.

Buffers live in host memory, so addresses can be read with ctypes; a wrong address, shape, order of calls or freed
buffer shows in the numbers or in the exit of the test process.
"""

import ctypes
import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engines.vendor import Vendor


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


class ILogger:
    """What `Vendor.logger` derives from."""


class IOutputAllocator:
    """What the output allocator derives from; like pybind11's, it must be initialised."""

    ready = False

    def __init__(self) -> None:
        self.ready = True


@dataclass
class Tensor:
    """One input or output of the fake engine: sizes with -1, and the three shapes of its profile."""

    name: str
    mode: TensorIOMode
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()
    location: TensorLocation = TensorLocation.DEVICE
    further: tuple[tuple[tuple[int, ...], ...], ...] = ()  # of its further profiles


@dataclass
class State:
    """What the test chooses, and what was called."""

    tensors: list[Tensor]
    validity: EngineValidity = EngineValidity.VALID
    diagnostics: int = 0
    loads: bool = True
    context: bool = True
    runs: bool = True
    refuse_shape: bool = False
    unknown_output: bool = False  # the output's size depends on values
    says: str = ""
    calls: list[str] = field(default_factory=list)


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


class Context:
    def __init__(self, state: State) -> None:
        self.state, self.shapes, self.addresses = state, {}, {}
        self.allocators: dict[str, Any] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        self.state.calls.append(f"set_input_shape {name} {list(shape)}")
        self.shapes[name] = shape
        return not self.state.refuse_shape

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.state.calls.append(f"set_optimization_profile {profile_index}")
        self.shapes, self.addresses = {}, {}  # a change of profile forgets both
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.state.calls.append(f"set_tensor_address {name}")
        self.addresses[name] = memory
        return memory != 0

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self.state.calls.append(f"set_output_allocator {name}")
        self.allocators[name] = output_allocator
        return bool(output_allocator.ready)

    def infer_shapes(self) -> list[str]:
        self.state.calls.append("infer_shapes")
        return [t.name for t in self.state.tensors if t.mode is TensorIOMode.INPUT and t.name not in self.addresses]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1] if self.state.unknown_output else list(self.shapes["x"])

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.state.calls.append(f"execute {stream_handle}")
        if not self.state.runs:
            self.state.log("ERROR", self.state.says)
            self.state.log("INFO", "afterwards")
            return False
        given, taken = self.state.tensors[0], self.state.tensors[-1]
        kind = {"HALF": "<f2", "FLOAT": "<f4", "INT64": "<i8", "BF16": "<u2"}[given.dtype]
        shape = self.shapes["x"]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        values = np.frombuffer(ctypes.string_at(self.addresses["x"], size), kind).reshape(shape)
        # BF16: adding 1 to the exponent field doubles; Relu-like outputs are not needed here
        result = values + np.uint16(0x80) if given.dtype == "BF16" else values + values
        if taken.name in self.allocators:
            allocator = self.allocators[taken.name]
            address = allocator.reallocate_output_async(taken.name, 0, size, 256, stream_handle)
            if not address:
                return False
            allocator.notify_shape(taken.name, list(shape))
        else:
            address = self.addresses[taken.name]
        ctypes.memmove(address, np.ascontiguousarray(result).tobytes(), size)
        return True


class RuntimeCache:
    def __init__(self, state: State) -> None:
        self.state = state

    def deserialize(self, blob: bytes) -> bool:
        self.state.calls.append(f"deserialize kernels {blob!r}")
        return blob != b"of another GPU"

    def serialize(self) -> bytes:
        return b"kernels"


class RuntimeConfig:
    def __init__(self, state: State) -> None:
        self.state = state
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.state)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Engine:
    def __init__(self, state: State) -> None:
        self.state = state
        self.num_io_tensors = len(state.tensors)
        self.num_optimization_profiles = 1 + len(state.tensors[0].further)

    def _tensor(self, name: str) -> Tensor:
        return next(t for t in self.state.tensors if t.name == name)

    def get_tensor_name(self, index: int) -> str:
        return self.state.tensors[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensor(name).mode

    def get_tensor_dtype(self, name: str) -> Named:
        return Named(self._tensor(name).dtype)

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._tensor(name).shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self._tensor(name).location

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list((self._tensor(name).profile, *self._tensor(name).further)[profile_index])

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self.state)

    def create_execution_context(self, runtime_config: "RuntimeConfig | None" = None) -> Context | None:
        assert runtime_config is None or isinstance(runtime_config.cache, RuntimeCache)
        self.state.calls.append("create_execution_context" + (" with a runtime cache" if runtime_config else ""))
        return Context(self.state) if self.state.context else None


def module(state: State, *, reads_headers: bool) -> Any:
    """Returns the module; `reads_headers` is what TensorRT-RTX can and TensorRT cannot."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            state.log = lambda severity, text: logger.log(Named(severity), text)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            state.calls.append(f"deserialize {serialized_engine!r}")
            if not state.loads:
                state.log("ERROR", state.says)
                state.log("WARNING", "a hint")
                return None
            return Engine(state)

    if reads_headers:
        Runtime.get_engine_validity = lambda self, buffer: (state.validity, state.diagnostics)

    names = (TensorIOMode, TensorLocation, EngineValidity, EngineInvalidityDiagnostics, ILogger, IOutputAllocator)
    return type("module", (), {"Runtime": Runtime} | {c.__name__: c for c in names})


def make(state: State, name: str = "tensorrt-rtx", version: str = "1.7.1.116") -> Vendor:
    rtx = name == "tensorrt-rtx"
    title = "TensorRT-RTX" if rtx else "TensorRT"
    sms = (80, 89, 120) if rtx else None
    return Vendor(name, title, module(state, reads_headers=rtx), version, sms, not rtx, "runtime" if rtx else "timing")
