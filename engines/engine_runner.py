"""Runs a TensorRT or TensorRT-RTX engine on PyTorch's CUDA buffers.

What the engine was built with and for is compared with what is here before any library touches the file
(`engines.engine_fit`), and sizes with the engine's profile before anything is enqueued. Both vendors share the
interface this uses: tensors by name, an address each, one stream.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from engines import engine_fit, engine_json, refit
from engines import runtime_cache as kernel_file
from engines.cuda_buffers import Buffers, output_allocator
from engines.errors import ToolkitError, UsageError
from engines.feeds import check_feeds
from engines.gpus import gpus
from engines.runner import Latency, TensorSpec, measure
from engines.vendor import DTYPES

if TYPE_CHECKING:
    import numpy as np
    import torch

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_NONE: Mapping[str, Any] = MappingProxyType({})


class EngineRunner:
    """An engine, loaded onto a GPU.

    Attributes:
        name: The engine's file.
        record: What engine.json says about it.
        inputs: The inputs a feed must hold, with the symbolic names of the ONNX graph.
        outputs: The outputs, in the engine's order.
        fallback: Always empty: an engine holds every layer.
    """

    fallback: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike[str], *, device: int = 0, runtime_cache: Path | None = None) -> None:
        """Loads the engine.

        Args:
            path: An engine file with the engine.json that its build wrote beside it.
            device: Which GPU, in CUDA's order.
            runtime_cache: File of the kernels that TensorRT-RTX compiles; `keep_runtime_cache` writes it.

        Raises:
            UsageError: The engine or its engine.json is missing or damaged, or they do not belong together; or the
                vendor has no runtime cache.
            BackendMissingError: The engine's builder is not installed or of another version, there is no GPU, the GPU
                is of another SM, or PyTorch cannot use it.
            ToolkitError: The GPU has no memory left for it.
        """
        self.name = os.fspath(path)
        self.record = engine_json.read(Path(path))
        plan = engine_json.read_plan(Path(path), self.record)
        self._vendor = engine_fit.installed(self.record, self.name)
        if runtime_cache:
            kernel_file.refuse(runtime_cache, self._vendor)
        engine_fit.require_gpu(self.record, gpus(), device, self.name)
        self._buffers = Buffers(_device(device))
        self._errors: list[str] = []
        # Everything the runtime makes refers to the logger, and the engine to its runtime, so both are kept.
        self._logger = self._vendor.logger(self._hear)
        self._runtime = self._vendor.module.Runtime(self._logger)
        if self.record.flags.version_compatible:  # its host code is ours: the sha256 of the plan was compared
            self._runtime.engine_host_code_allowed = True
        self._engine = engine_fit.deserialize(self._vendor, self._runtime, plan, self.name, self._errors)
        if self.record.flags.strip_plan:
            refit.put_weights(self._vendor, self._engine, self._logger, Path(path), self._errors)
        self._kernels: tuple[Any, Path] | None = None
        if runtime_cache:
            self._context, kernels = kernel_file.context(self._vendor, self._engine, runtime_cache, _log.warning)
            self._kernels = kernels, runtime_cache
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("made no execution context, most likely for want of GPU memory,")
        modes = self._vendor.module.TensorIOMode
        self.inputs = self._specs(modes.INPUT, self.record.inputs)
        self.outputs = self._specs(modes.OUTPUT, self.record.outputs)
        self._bound: dict[str, torch.Tensor] = {}
        self._profile = 0  # the active one

    @property
    def provider(self) -> str:
        """The builder whose engine computes: "tensorrt-rtx" or "tensorrt"."""
        return self._vendor.name

    def run(self, feeds: Mapping[str, "np.ndarray"]) -> dict[str, "np.ndarray"]:
        """Returns every output by name; bfloat16 as ml_dtypes.bfloat16.

        Raises:
            UsageError: The feeds do not fit the inputs, or a size lies outside the profile the engine was built for.
            ToolkitError: The runtime failed.
        """
        outputs = self._bind(feeds)
        self._once()
        return {spec.name: self._buffers.download(outputs[spec.name](), spec.dtype) for spec in self.outputs}

    def zeros(self, name: str, shape: tuple[int, ...]) -> "torch.Tensor":
        """Returns a tensor of zeros on the GPU, of the type of an input."""
        return self._buffers.zeros(shape, self._spec(name).dtype)

    def fetched(self, name: str, value: "torch.Tensor") -> "np.ndarray":
        """Returns a copy in host memory of a tensor of an input's type."""
        return self._buffers.download(value, self._spec(name).dtype)

    def resume(
        self, feeds: Mapping[str, "np.ndarray"], carried: Mapping[str, "torch.Tensor"], kept: Mapping[str, Any]
    ) -> "tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]":
        """Returns (outputs by name, those of `kept` as tensors that stay on the GPU).

        Args:
            feeds: Inputs from the host.
            carried: Inputs that are on the GPU: of `zeros`, or kept by an earlier run.
            kept: Outputs to keep: the tensor to write to, as a cache updated in place needs, or None for a new one.

        Raises:
            UsageError: The feeds do not fit the inputs, or a size lies outside the profile.
            ToolkitError: The runtime failed.
        """
        outputs = self._bind(feeds, carried, kept)
        self._once()
        fetched = {
            s.name: self._buffers.download(outputs[s.name](), s.dtype) for s in self.outputs if s.name not in kept
        }
        return fetched, {name: outputs[name]() for name in kept}

    def latency(self, feeds: Mapping[str, "np.ndarray"], repeat: int) -> Latency:
        """Returns how long one inference takes, inputs and outputs resident on the GPU.

        Raises:
            UsageError: The feeds do not fit, or `repeat` is below 1.
            ToolkitError: The runtime failed.
        """
        self._bind(feeds)
        return measure(self._once, repeat)

    def keep_runtime_cache(self) -> None:
        """Writes the kernels compiled so far to the runtime cache that was named, if one was.

        Raises:
            UsageError: The file cannot be written.
        """
        if self._kernels:
            kernel_file.keep(*self._kernels)

    def _bind(
        self,
        feeds: Mapping[str, "np.ndarray"],
        carried: Mapping[str, "torch.Tensor"] = _NONE,
        kept: Mapping[str, "torch.Tensor | None"] = _NONE,
    ) -> dict[str, Callable[[], "torch.Tensor"]]:
        """Gives the context every address; returns what fetches each output once the engine has run."""
        arrays = check_feeds([spec for spec in self.inputs if spec.name not in carried], feeds)
        shapes = {name: tuple(x.shape) for name, x in arrays.items()}
        shapes |= {name: tuple(tensor.shape) for name, tensor in carried.items()}
        self._choose_profile(shapes)
        self._failures: list[Exception] = []
        self._allocators: list[Any] = []  # the context does not own them
        self._bound = {}
        for spec in self.inputs:
            tensor = carried.get(spec.name)
            if tensor is None:
                tensor = self._buffers.upload(arrays[spec.name], spec.dtype, host=self._on_host(spec))
            if not self._context.set_input_shape(spec.name, shapes[spec.name]):
                raise self._failed(f"refused shape {list(shapes[spec.name])} of input {spec.name!r}")
            self._place(spec.name, tensor)
        self._buffers.synchronize()  # shape tensors are read while shapes are inferred
        unset = self._context.infer_shapes()
        if unset:
            raise self._failed(f"could not infer shapes, as {', '.join(unset)} lack theirs,")
        return {spec.name: self._output(spec, kept.get(spec.name)) for spec in self.outputs}

    def _output(self, spec: TensorSpec, held: "torch.Tensor | None") -> Callable[[], "torch.Tensor"]:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if held is not None or min(shape, default=0) >= 0:
            tensor = held if held is not None else self._buffers.empty(shape, spec.dtype, host=self._on_host(spec))
            self._place(spec.name, tensor)
            return lambda: tensor
        allocator = output_allocator(self._vendor.module, self._buffers, self._failures)
        self._allocators.append(allocator)
        if not self._context.set_output_allocator(spec.name, allocator):
            raise self._failed(f"refused an allocator for output {spec.name!r}, whose size depends on values,")
        return lambda: allocator.tensor(spec.dtype)

    def _place(self, name: str, tensor: "torch.Tensor") -> None:
        self._bound[name] = tensor  # the engine holds the address, this holds the memory
        if not self._context.set_tensor_address(name, self._buffers.address(tensor)):
            raise self._failed(f"refused the address of {name!r}")

    def _once(self) -> None:
        started = self._context.execute_async_v3(self._buffers.handle)
        if self._failures:
            raise ToolkitError(f"{self.name} could not run: {self._failures[0]}") from self._failures[0]
        if not started:
            raise self._failed("could not run")
        self._buffers.synchronize()

    def _choose_profile(self, shapes: Mapping[str, Shape]) -> None:
        """Makes the first of the engine's profiles that takes these shapes the active one."""
        misfits = []
        for number in range(max(1, self._engine.num_optimization_profiles)):
            misfit = self._misfit(shapes, number)
            if misfit is None:
                self._activate(number)
                return
            misfits.append(misfit)
        others = f" Its other profiles ({len(misfits) - 1}) do not take it either." if misfits[1:] else ""
        raise UsageError(misfits[0] + others)

    def _activate(self, number: int) -> None:
        if number == self._profile:
            return
        if not self._context.set_optimization_profile_async(number, self._buffers.handle):
            raise self._failed(f"refused its profile {number}")
        self._profile = number

    def _misfit(self, shapes: Mapping[str, Shape], number: int) -> str | None:
        for spec in self.inputs:
            if self._on_host(spec):
                continue  # the profile of a shape tensor bounds its values, which the runtime checks itself
            low, opt, high = (tuple(s) for s in self._engine.get_tensor_profile_shape(spec.name, number))
            for axis, size in enumerate(shapes[spec.name]):
                if not low[axis] <= size <= high[axis]:
                    dim = spec.shape[axis]
                    return (
                        f"Axis {axis} of input {spec.name!r} ({dim}) is {size}; {self.name} was built for "
                        f"{low[axis]}..{high[axis]}. Rebuild it with --shapes {dim}="
                        f"{min(low[axis], size)}:{opt[axis]}:{max(high[axis], size)}."
                    )
        return None

    def _specs(self, mode: Any, recorded: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Returns the engine's own names, dtypes and sizes; only the symbolic names are the record's."""
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        known = {spec.name: spec.shape for spec in recorded}
        specs = []
        for name in (n for n in names if engine.get_tensor_mode(n) == mode):
            sizes = tuple(engine.get_tensor_shape(name))
            symbols = known.get(name, ())
            shape = tuple(
                size if size >= 0 else symbols[axis] if len(symbols) == len(sizes) else f"{name}.{axis}"
                for axis, size in enumerate(sizes)
            )
            specs.append(TensorSpec(name, DTYPES[engine.get_tensor_dtype(name).name], shape))
        return tuple(specs)

    def _spec(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def _on_host(self, spec: TensorSpec) -> bool:
        location = self._engine.get_tensor_location(spec.name)
        return bool(location == self._vendor.module.TensorLocation.HOST)

    def _hear(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(text)

    def _failed(self, what: str) -> ToolkitError:
        return engine_fit.failed(self._vendor, what, self.name, self._errors)


def _device(number: int) -> "torch.device":
    import torch

    return torch.device("cuda", number)
