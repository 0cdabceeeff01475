"""Runs an ONNX model in ONNX Runtime, on the provider that was asked for or not at all."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from engines import ort_session, providers
from engines.errors import ToolkitError, UsageError
from engines.feeds import as_dtype, check_feeds
from engines.ort_values import from_host, is_numpy, to_host
from engines.runner import Latency, TensorSpec, measure

if TYPE_CHECKING:
    import numpy as np


_NONE: Mapping[str, Any] = MappingProxyType({})


class OrtRunner:
    """A model in an ONNX Runtime session.

    Attributes:
        name: The model's file, or "the model in memory".
        inputs: The inputs a feed must hold, in the graph's order.
        outputs: The outputs, in the graph's order.
        fallback: "node (operator)" of every node the asked-for provider left to another one. Empty where it took all,
            None where this ONNX Runtime does not say.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        provider: str = "cpu",
        *,
        threads: int | None = None,
        optimization: str = "layout",
        verbose: bool = False,
        allow_fallback: bool = False,
        lean: bool = False,
        data: Path | None = None,
    ) -> None:
        """Opens the session and makes sure that it is what was asked for.

        Args:
            model: Path of an .onnx file, or the serialised model.
            provider: "cpu", "cuda", "tensorrt" or "tensorrt-rtx".
            threads: Threads inside one operator; None leaves the choice to ONNX Runtime.
            optimization: Which graph optimisations the session does: "all", "layout", "extended", "basic", "disable".
                Not "all" unless asked for: ONNX Runtime 1.31 ends the process with it (a segmentation fault) on an
                fp16 encoder layer exported at opset 20, and does not with "layout", the level below.
            verbose: Let ONNX Runtime write its own log to stderr.
            allow_fallback: Accept computing nodes on another provider; they are in `fallback` then.
            lean: Keep no second copy of the weights, for models that are large beside the memory; slower.
            data: Folder of the external data, for a serialised model.

        Raises:
            UsageError: The file is missing, or ONNX Runtime does not accept the model or an option.
            BackendMissingError: The provider does not load here, or has no kernel for a node that computes.
        """
        self._row = providers.provider(provider)
        self._verbose = verbose
        self._lent: list[np.ndarray] = []
        self.name = ort_session.shown(model)
        options = ort_session.session_options(threads, optimization, verbose, lean=lean, data=data)
        self._session = ort_session.open_session(model, self._row, options, verbose=verbose, without=self._row.slower)
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self.fallback = ort_session.nodes_elsewhere(self._session, self._row)
        if not allow_fallback:
            ort_session.refuse_fallback(self.fallback, self._row, self.name)

    @property
    def provider(self) -> str:
        """The provider that computes, by the name that was asked for."""
        return self._row.name

    @property
    def providers(self) -> tuple[str, ...]:
        """The session's providers by ONNX Runtime's names, the asked-for one first."""
        return tuple(self._session.get_providers())

    def run(self, feeds: Mapping[str, "np.ndarray"]) -> dict[str, "np.ndarray"]:
        """Returns every output by name; bfloat16 as ml_dtypes.bfloat16.

        On a GPU the inputs are copied to device memory before the run and outputs stay there until it is done, except
        bfloat16 outputs, which come back with the run.

        Raises:
            UsageError: The feeds do not fit the inputs, or ONNX Runtime rejects them.
            ToolkitError: ONNX Runtime failed while computing.
        """
        arrays = check_feeds(self.inputs, feeds)
        with self._running():
            binding = self._bind(arrays, fetch=True)
            self._once(binding)
            results = binding.get_outputs()
            return {spec.name: to_host(result, spec.dtype) for spec, result in zip(self.outputs, results, strict=True)}

    def latency(self, feeds: Mapping[str, "np.ndarray"], repeat: int) -> Latency:
        """Returns how long one inference takes, inputs and outputs resident on the provider's device.

        Raises:
            UsageError: The feeds do not fit, or `repeat` is below 1.
            ToolkitError: ONNX Runtime failed while computing.
        """
        call = self.held(feeds)
        with self._running():
            return measure(call, repeat)

    def held(self, feeds: Mapping[str, "np.ndarray"]) -> Callable[[], None]:
        """Returns a call that computes once, inputs and outputs resident on the provider's device, and ends when it is
        done.

        Raises:
            UsageError: The feeds do not fit.
            ToolkitError: ONNX Runtime failed while binding them.
        """
        arrays = check_feeds(self.inputs, feeds)
        with self._running():
            binding = self._bind(arrays, fetch=False)

        def call() -> None:
            self._once(binding)

        self._lent += arrays.values()  # the binding shares their memory
        return call

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """Returns an OrtValue of zeros for an input, on the provider's device (bfloat16: in host memory)."""
        import numpy as np
        import onnxruntime

        spec = next(spec for spec in self.inputs if spec.name == name)
        kind = as_dtype(spec.dtype)
        if not is_numpy(spec.dtype):
            return from_host(self._lend(np.zeros(shape, kind)), spec.dtype)
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, self._row.device, 0)
        if 0 not in shape:
            value.update_inplace(np.zeros(shape, kind))
        return value

    def _lend(self, array: "np.ndarray") -> "np.ndarray":
        """Keeps an array whose memory a value shares alive as long as the runner."""
        self._lent.append(array)
        return array

    def fetched(self, name: str, value: Any) -> "np.ndarray":
        """Returns a copy in host memory of an OrtValue of that input's type."""
        import numpy as np

        return np.array(to_host(value, next(spec.dtype for spec in self.inputs if spec.name == name)))

    def resume(
        self, feeds: Mapping[str, "np.ndarray"], carried: Mapping[str, Any], kept: Mapping[str, Any]
    ) -> "tuple[dict[str, np.ndarray], dict[str, Any]]":
        """Returns (outputs by name, those of `kept` as OrtValues that stay on the device).

        Args:
            feeds: Inputs from the host.
            carried: Inputs that are OrtValues: of `zeros`, or kept by an earlier run.
            kept: Outputs to keep: the OrtValue to write to, or None for a new one.

        Raises:
            UsageError: The feeds do not fit the inputs, or ONNX Runtime rejects them.
            ToolkitError: ONNX Runtime failed while computing.
        """
        arrays = check_feeds([spec for spec in self.inputs if spec.name not in carried], feeds)
        with self._running():
            binding = self._bind(arrays, fetch=True, carried=carried, kept=kept)
            self._once(binding)
            results = dict(zip((spec.name for spec in self.outputs), binding.get_outputs(), strict=True))
            fetched = {s.name: to_host(results[s.name], s.dtype) for s in self.outputs if s.name not in kept}
            return fetched, {name: results[name] for name in kept}

    def _once(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding, ort_session.run_options(self._verbose))
        binding.synchronize_outputs()

    def _bind(
        self,
        arrays: Mapping[str, "np.ndarray"],
        *,
        fetch: bool,
        carried: Mapping[str, Any] = _NONE,
        kept: Mapping[str, Any] = _NONE,
    ) -> Any:
        """Returns an IO binding; binding an input copies it, once, to the device of the node that reads it.

        The arrays must outlive the binding: on the CPU it shares their memory.
        """
        binding = self._session.io_binding()
        for spec in self.inputs:
            held = carried.get(spec.name)
            binding.bind_ortvalue_input(spec.name, from_host(arrays[spec.name], spec.dtype) if held is None else held)
        binding.synchronize_inputs()
        for spec in self.outputs:
            if kept.get(spec.name) is not None:
                binding.bind_ortvalue_output(spec.name, kept[spec.name])
                continue
            # A type numpy lacks cannot be read off a GPU from Python, so the run itself brings those to the host.
            on_host = fetch and spec.name not in kept and not is_numpy(spec.dtype)
            binding.bind_output(spec.name, "cpu" if on_host else self._row.device)
        return binding

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        try:
            yield
        except ToolkitError:
            raise
        except Exception as error:  # its exceptions share no base class of their own
            kind = UsageError if type(error).__name__ == "InvalidArgument" else ToolkitError
            raise kind(
                f"ONNX Runtime failed while running {self.name} on {self._row.name}: {providers.sentence(error)}. "
                "Where a Reshape, Expand or Add fails on a size, that size was most likely baked in at export: "
                "feed the size it was exported with, or export that axis as dynamic."
            ) from error


def _spec(arg: Any) -> TensorSpec:
    kind = arg.type
    if not kind.startswith("tensor("):
        raise UsageError(f"{arg.name!r} of the model is a {kind}; only models that take and give tensors can be run.")
    element = kind.removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64", "string": "str"}
    shape = tuple(f"{arg.name}.{axis}" if size is None else size for axis, size in enumerate(arg.shape))
    return TensorSpec(arg.name, names.get(element, element), shape)
