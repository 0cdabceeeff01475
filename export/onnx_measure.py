"""What the stages of an ONNX file are measured with: its truth in float64, and how far it may itself be from that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from engines.ort_runner import OrtRunner
from export import external_data, onnx_truth
from export.lower import for_ort_check
from export.ort_view import LEAN_FROM, open_model
from export.parity.reach import DRAWS
from export.precision import TYPES, yardstick
from export.precision.convert import Converted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from export.parity.compare import Expected

    Arrays = dict[str, npt.NDArray[np.generic]]
    Feeds = Mapping[str, npt.NDArray[np.generic]]
    Run = Callable[[Feeds], Arrays]

FEW = 2
"""Moved runs of a model whose every run takes seconds, or of its inputs."""


@dataclass(frozen=True)
class Measure:
    """The truth about a file, and honest executions of it.

    Attributes:
        truth: Feeds -> outputs in float64.
        how: The words for the truth.
        executions: The file as it is at its dtype, then runs in which rounding falls otherwise.
    """

    truth: "Run"
    how: str
    executions: "tuple[Run, ...]"

    def runs(self, feeds: "Feeds") -> "list[Arrays]":
        """Returns the outputs of every execution."""
        return [run(feeds) for run in self.executions]


def of_file(model: ir.Model, path: Path, feeds: "Feeds") -> Measure:
    """Returns the measure of a file at its own dtype: run as it is, and with each step's result moved by one unit.

    The session for it is opened when it is first run, and only once: the truth's may be closed by then.

    Raises:
        UsageError: ONNX Runtime cannot run the file.
    """
    truth = onnx_truth.of(model, feeds)

    @cache
    def own() -> OrtRunner:
        return open_model(yardstick.shaken(for_ort_check(model)), path, optimization="disable")

    draws = DRAWS if external_data.size(model) < LEAN_FROM else FEW
    return Measure(truth.run, truth.how, yardstick.grids(lambda feeds: own().run(feeds), draws))


def of_converted(converted: Converted, dtype: str, feeds: "Feeds") -> Measure:
    """Returns the measure of a converted file: the float32 graph it was made from, rounded where it was narrowed.

    Raises:
        UsageError: ONNX Runtime cannot run that graph.
    """
    to = TYPES[dtype]
    truth = onnx_truth.of(yardstick.with_rounded_weights(converted, to), feeds)
    own = yardstick.in_float32(yardstick.rounded(converted, to), converted.model)
    return Measure(truth.run, truth.how, yardstick.grids(own.run, DRAWS))


def expected(exact: "Arrays", runs: "Sequence[Arrays]") -> "tuple[Expected, ...]":
    """Returns what each output must be: the exact values, within the reach of these runs."""
    from export.parity.compare import Expected
    from export.parity.reach import reach

    found = []
    for name, value in exact.items():
        dtype = runs[0][name].dtype.name
        if value.dtype.kind in "biu":
            found.append(Expected(name, dtype, value))
            continue
        wide = value.astype("float64")
        far, norm = reach(wide, [r[name].astype("float64") for r in runs], None, None)
        found.append(Expected(name, dtype, wide, far, norm))
    return tuple(found)


def moved(feeds: "Feeds", dtype: str, seed: int) -> "Arrays":
    """Returns the feeds, each number moved by up to one unit in the last place, as rounding may move any input."""
    import numpy as np

    from export.parity.precision import precision

    generator = np.random.default_rng(seed)
    found = {}
    for name, array in feeds.items():
        if not array.dtype.name.startswith(("float", "bfloat")):
            found[name] = array
            continue
        wide = array.astype(np.float64)
        step = generator.uniform(-1, 1, array.shape) * precision(dtype).ulp(wide)
        found[name] = np.asarray(wide + step).astype(array.dtype)
    return found
