"""Runs what was exported, before it counts as exported: at three shapes, on ONNX Runtime's CPU, against the module.

The bound is derived, not chosen: the graph's error may be twice the module's own error at that dtype, both against the
module in float64, plus four units in the last place of the largest reference value. The twice is for another order of
summation, the four for the roundings of an output that the module's own run happened to get exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.capture import failures, precision, runnable, sizes, torchscript, tree
from export.capture.arrays import as_array, is_floating
from export.capture.inputs import call
from export.errors import CaptureError
from export.model.form import Case

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir

    from export.capture.contract import Captured, Source

    Array = npt.NDArray[Any]

TWICE, ULPS = 2.0, 4.0

_EPSILON = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
_SMALLEST = {"fp32": 2.0**-149, "fp16": 2.0**-24, "bf16": 2.0**-133}


@dataclass(frozen=True)
class Run:
    """One shape, as the module computed it.

    Attributes:
        sizes: {dimension: size}.
        inputs: At the dtype, by forward's parameter names.
        own: The module's outputs at the dtype.
        exact: Its outputs in float64 on the same numbers.
    """

    sizes: Mapping[str, int]
    inputs: dict[str, Any]
    own: "list[Array]"
    exact: "list[Array]"


def compared(captured: "Captured", runs: list[Run], dtype: str) -> list[str]:
    """Returns what the user should know about the check; nothing where all went well.

    Args:
        captured: What was exported.
        runs: From `module_runs`.
        dtype: "fp32", "fp16" or "bf16".

    Raises:
        CaptureError: ONNX Runtime refuses the graph or computes something else than the module.
    """
    notes: list[str] = []
    if not runs:
        return ["The exported graph was NOT RUN: the module itself runs at none of the shapes."]
    if dtype == "bf16":
        notes.append(
            "ONNX Runtime's CPU does not compute in bf16: the exported graph was run with its bf16 values widened to "
            "fp32, so its structure is checked and its rounding is NOT RUN."
        )
        _compare_all(captured, runnable.widened(captured.model), runs, dtype)
        return notes
    try:
        _compare_all(captured, captured.model, runs, dtype)
    except CaptureError as error:
        if dtype != "fp16":
            raise
        # Where the module selects by value (top-k), one rounding may select another row: not an error of the graph.
        _compare_all(captured, runnable.widened(captured.model), runs, dtype)
        notes.append(f"With fp16 widened to fp32 the graph agrees with the module; in fp16: {error}")
    return notes


def module_runs(source: "Source", module: torch.nn.Module, dtype: str) -> tuple[list[Run], list[str]]:
    """Returns the module's own outputs at three shapes, at the dtype and in float64, and notes on what was not run."""
    wide = precision.reference(source.module, dtype)
    runs: list[Run] = []
    notes: list[str] = []
    padding = "right" if source.form is not None and "right" in source.form.padding else "none"
    shapes = sizes.three(source)
    for index, shape in enumerate(shapes):
        # Other values too, so that a frozen branch shows: the second run draws anew, the third turns the signs.
        seed, magnitude = ((0, 1.0), (1, 1.0), (0, -1.0))[index]
        case = Case("export", dict(shape), padding if index else "none", magnitude, seed)
        drawn = source.draw(case)
        inputs = precision.cast(drawn, precision.DTYPES[dtype])
        try:
            own = _outputs(module, inputs)
            exact = _outputs(wide, precision.cast(inputs, torch.float64))
        except Exception as error:  # PyTorch lacks some CPU kernels at half precision, and forward is the user's code
            reason = " ".join(str(error).split())[:200]
            notes.append(f"NOT RUN at {spoken(shape)}: PyTorch itself fails there ({type(error).__name__}: {reason}).")
            continue
        runs.append(Run(shape, inputs, own, exact))
    if len(shapes) < 3 and source.dynamic:
        notes.append(
            f"Run at {len(shapes)} of 3 shapes: the module runs at no further sizes of {', '.join(shapes[0])}."
        )
    return runs, notes


def bound(own: "Array", exact: "Array", dtype: str) -> float:
    """Returns the largest error allowed to a graph, from the module's own (see the module's docstring)."""
    finite = np.isfinite(own) & np.isfinite(exact)
    own, exact = np.where(finite, own, 0.0), np.where(finite, exact, 0.0)
    error = float(np.abs(own - exact).max(initial=0.0))
    largest = float(np.abs(exact).max(initial=0.0))
    ulp = (
        max(_EPSILON[dtype] * 2.0 ** np.floor(np.log2(largest)), _SMALLEST[dtype]) if largest > 0 else _SMALLEST[dtype]
    )
    return TWICE * error + ULPS * float(ulp)


def spoken(shape: Mapping[str, int]) -> str:
    """Returns "batch=2, length=7"."""
    return ", ".join(f"{name}={size}" for name, size in shape.items()) or "the example's sizes"


def _compare_all(captured: "Captured", model: "ir.Model", runs: list[Run], dtype: str) -> None:
    session = _open(model)
    for one in runs:
        feeds = captured.flatten(one.inputs)
        kinds = {i.name: i.type for i in session.get_inputs()}
        fed = {n: a.astype(np.float32) if kinds[n] == "tensor(float)" else a for n, a in feeds.items()}
        try:
            got = session.run(None, fed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            other = runnable.expanded_masks(model) if "Attention" in str(error) else None
            if other is None:
                raise failures.refused(model, error, f"at {spoken(one.sizes)}") from error
            model, session = other, _open(other)
            try:
                got = session.run(None, fed)
            except Exception as again:
                raise failures.refused(model, again, f"at {spoken(one.sizes)}") from again
        for name, values, own, exact in zip(captured.outputs, got, one.own, one.exact, strict=True):
            problem = difference(values, own, exact, dtype)
            if problem:
                said = [note for note in captured.warnings if note.startswith(torchscript.FROZE)]
                where = f"output `{name}` at {spoken(one.sizes)} {problem}"
                raise failures.frozen(captured.model, where, said)


def difference(got: "Array", own: "Array", exact: "Array", dtype: str) -> str | None:
    """Returns how a graph's output differs from the module's beyond the bound, or None where it does not.

    Args:
        got: The graph's output.
        own: The module's output at the dtype.
        exact: Its output in float64.
        dtype: The dtype of the module.
    """
    if got.shape != own.shape:
        return f"has the shape {got.shape}, and the module gives {own.shape}"
    if not is_floating(own):
        wrong, noise = int(np.sum(got != exact)), int(np.sum(own != exact))
        return f"differs in {wrong} of {got.size} values" if wrong > TWICE * noise else None
    got, own, exact = (np.asarray(a, np.float64) for a in (got, own, exact))
    states = [np.where(np.isnan(a), 2, np.where(np.isinf(a), np.sign(a), 0)) for a in (got, own, exact)]
    # Where the module overflows and float64 does not, a graph may do either, at one place this and at another that.
    if not np.all((states[0] == states[1]) | (states[0] == states[2])):
        return (
            f"is not finite in {int(np.sum(states[0] != 0))} places, and the module's in {int(np.sum(states[1] != 0))}"
        )
    finite = (states[0] == 0) & (states[2] == 0)
    error = np.where(finite, np.abs(np.where(finite, got, 0) - np.where(finite, exact, 0)), 0)
    allowed = bound(own, exact, dtype)
    worst = float(error.max(initial=0.0))
    if worst <= allowed:
        return None
    place = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    return f"is off by {worst:.3g} at {list(place)}, and {allowed:.3g} is what {dtype} explains"


def _outputs(module: torch.nn.Module, inputs: dict[str, Any]) -> "list[Array]":
    leaves = [leaf for _, leaf in tree.outputs(call(module, inputs)) if isinstance(leaf, torch.Tensor)]
    arrays = [as_array(leaf) for leaf in leaves]
    return [array.astype(np.float64) if is_floating(array) else array for array in arrays]


def _open(model: "ir.Model") -> Any:
    try:
        return runnable.session(model)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise failures.refused(model, error, "when it loads it") from error
