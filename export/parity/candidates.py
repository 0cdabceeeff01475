"""Anything that can be checked, as one function from a case's inputs to its outputs in order."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from engines.errors import BackendMissingError
from export.errors import UsageError
from export.parity import arrays
from export.parity.case import ParityCase
from export.parity.precision import Precision
from export.parity.result import NotRun

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    AnyArray = npt.NDArray[np.generic]
    Run = Callable[[ParityCase, Mapping[str, Any]], "dict[str, AnyArray]"]
    Flatten = Callable[[Mapping[str, Any]], "Mapping[str, AnyArray]"]


def opened(candidate: Any, dtype: Precision, flatten: "Flatten | None" = None) -> "Run | NotRun":
    """Returns a function of (case, its inputs at the dtype) that gives the outputs by name, or why there is none.

    Args:
        candidate: One of: `NotRun`; path of an .onnx file, or its bytes (run on ONNX Runtime CPU); an object with
            `.run(feeds)`, a dict of arrays by graph input name; an `nn.Module` (rounded to the dtype); a function,
            called with tensors as the reference is.
        dtype: The dtype under test.
        flatten: Turns inputs into feeds by graph input name; nested ones get capture's names by default.

    Raises:
        UsageError: The candidate is none of these, or its file cannot be run.
    """
    flat: Flatten = flatten or arrays.feeds
    if isinstance(candidate, NotRun):
        return candidate
    if isinstance(candidate, str | os.PathLike | bytes):
        if dtype.name == "bf16":
            return NotRun("ONNX Runtime's CPU provider has no bfloat16 kernels for attention and matrix products.")
        from engines.ort_runner import OrtRunner

        try:
            candidate = OrtRunner(candidate, "cpu")
        except BackendMissingError as error:
            return NotRun(str(error))
    if callable(getattr(candidate, "run", None)):
        runner = candidate
        return lambda case, inputs: dict(runner.run(_fitted(flat(inputs), runner)))
    if not callable(candidate):
        raise UsageError(
            f"A {type(candidate).__name__} cannot be checked: give a path of an .onnx file, an nn.Module, a function, "
            "or an object with .run(feeds)."
        )
    return _called(candidate, dtype)


def keeps_float32(candidate: Any) -> bool:
    """Says whether a candidate runs on ONNX Runtime's CPU provider, which keeps half-precision scores in float32."""
    from engines.ort_runner import OrtRunner

    if isinstance(candidate, OrtRunner):
        return candidate.provider == "cpu"
    return isinstance(candidate, str | os.PathLike | bytes)


def _called(candidate: Callable[..., Any], dtype: Precision) -> "Run":
    import torch

    from export.parity.reference import at_dtype

    target = at_dtype(candidate, dtype) if isinstance(candidate, torch.nn.Module) else candidate

    def run(case: ParityCase, inputs: Mapping[str, Any]) -> "dict[str, AnyArray]":
        args, kwargs = case.arguments(inputs)
        with torch.no_grad():
            value = target(*args, **kwargs)
        return arrays.outputs(value)

    return run


def _fitted(feeds: "Mapping[str, AnyArray]", runner: Any) -> "dict[str, AnyArray]":
    """Returns the feeds that the runner's graph takes: others dropped, by position where no name agrees, widened.

    Raises:
        UsageError: The graph takes an input that the case does not have.
    """
    specs = getattr(runner, "inputs", None)
    if not specs:
        return dict(feeds)
    names = [spec.name for spec in specs]
    if not set(names) & set(feeds) and len(names) == len(feeds):
        feeds = dict(zip(names, feeds.values(), strict=True))
    missing = [name for name in names if name not in feeds]
    if missing:
        raise UsageError(f"The graph takes {missing[0]!r}, which the case lacks; the case has {', '.join(feeds)}.")
    # A graph that keeps float32 inputs and outputs around a half-precision body takes the same numbers, widened.
    return {
        spec.name: feeds[spec.name].astype("float32")
        if spec.dtype == "float32" and feeds[spec.name].dtype.name in ("float16", "bfloat16")
        else feeds[spec.name]
        for spec in specs
    }
