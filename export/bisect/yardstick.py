"""What each tensor of A must be, with its budget: float64, and how far A itself is from that at its dtype.

The budget of an inner tensor is that of an output (`export.parity.budgets`): 2 reach + 4 ulp. A graph's reach is that
of its own run and of runs with inputs moved by up to one unit in the last place; a module's, of its own run and of runs
in which each operator's result is moved.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from export import onnx_truth
from export.bisect.tensors import Tensors
from export.onnx_measure import FEW, expected, moved
from export.parity.compare import Expected
from export.parity.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    Arrays = dict[str, np.ndarray]

_WIDE_LIMIT = 15 << 27
"""Bytes of weights in float64 that fit one protobuf message."""


class Yardstick(Protocol):
    """What tensors must be; `how` says by which means."""

    how: str

    def expected(self, keys: Sequence[str]) -> dict[str, Expected]:
        """Returns what each tensor must be, by key; one that has no value here is left out."""


class OfGraph:
    """A graph's tensors, by name."""

    def __init__(self, tensors: Tensors, feeds: "Mapping[str, np.ndarray]", dtype: Precision) -> None:
        self._tensors, self._feeds, self._dtype = tensors, feeds, dtype
        self.how = ""

    def expected(self, keys: Sequence[str]) -> dict[str, Expected]:
        """Returns what each tensor must be."""
        runner = self._tensors.runner(keys)
        own = runner.run(self._feeds)
        runs = [own, *(runner.run(moved(self._feeds, self._dtype.name, seed)) for seed in range(FEW))]
        return {e.name: e for e in expected(self._exact(keys, own), runs)}

    def _exact(self, keys: Sequence[str], own: "Arrays") -> "Arrays":
        model = self._tensors.cut(keys)
        if _wide_bytes(model) > _WIDE_LIMIT:
            self.how = "itself in float32: in float64 its weights exceed what one session takes"
            return own
        truth = onnx_truth.of(model, self._feeds)
        self.how = f"itself in {truth.how}"
        return truth.run(self._feeds)


class OfModule:
    """The outputs of a PyTorch module's own modules, by path."""

    def __init__(self, source: Any, inputs: Mapping[str, Any], dtype: Precision) -> None:
        from export.capture import precision as conversion
        from export.parity import arrays

        self._narrow = conversion.to_dtype(source.module, dtype.name).eval()
        self._wide = conversion.reference(source.module, dtype.name).eval()
        self._inputs = arrays.cast(inputs, conversion.DTYPES[dtype.name])
        self.how = "PyTorch in float64"

    def expected(self, keys: Sequence[str]) -> dict[str, Expected]:
        """Returns what each module's output must be."""
        import torch

        from export.capture.quiet import plain_attention
        from export.parity import arrays, rounding

        wide = arrays.cast(self._inputs, torch.float64)
        with torch.no_grad(), plain_attention():
            own = _heard(self._narrow, keys, lambda: self._narrow(**self._inputs))
            runs = [own]
            for seed in range(FEW):
                again = partial(rounding.rounded, self._narrow, (), self._inputs, seed=seed, zero=False)
                runs.append(_heard(self._narrow, keys, lambda run=again: run().value))  # type: ignore[misc]
            exact = _heard(self._wide, keys, lambda: rounding.exact(self._wide, (), wide, zero=False).value)
        return {e.name: e for e in expected(exact, runs)}


class OfOutputs:
    """A module's outputs, judged as parity judges a build's: a row that sees no key may be computed with zero weights.

    Args:
        source: The module.
        inputs: By forward's parameter names.
        dtype: The precision compared at.
        widens: Whether what is judged is ONNX Runtime's CPU provider, which keeps half-precision scores in float32.
    """

    how = "PyTorch in float64"

    def __init__(self, source: Any, inputs: Mapping[str, Any], dtype: Precision, *, widens: bool) -> None:
        from export.parity.case import ParityCase
        from export.parity.reference import Reference

        found = Reference(source.module, dtype).truth(ParityCase("bisect", inputs)).keep
        kept = found if widens else tuple(replace(e, unabsorbed=None) for e in found)
        self._expected = {f"#{at}": e for at, e in enumerate(kept)}

    def expected(self, keys: Sequence[str]) -> dict[str, Expected]:
        """Returns what each output must be."""
        return {key: self._expected[key] for key in keys if key in self._expected}


def _heard(module: Any, keys: Sequence[str], call: Callable[[], Any]) -> "Arrays":
    """Returns the outputs of the modules at `keys`, of the last time each was called."""
    found: Arrays = {}
    with _hooks(module, keys, found):
        call()
    return {key: found[key] for key in keys if key in found}


@contextmanager
def _hooks(module: Any, keys: Sequence[str], found: "Arrays") -> "Iterator[None]":
    import torch

    from export.capture.arrays import as_array

    def keep(key: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            found[key] = as_array(output.clone())

    parts = dict(module.named_modules())
    handles = [
        parts[key].register_forward_hook(lambda part, given, output, key=key: keep(key, output))
        for key in keys
        if key in parts and key
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wide_bytes(model: ir.Model) -> int:
    tensors = (v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None)
    return sum(8 * tensor.size for tensor in tensors if tensor.dtype.is_floating_point())
