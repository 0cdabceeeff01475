"""The inputs both are run on: what the user gave, or cases drawn as parity draws them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import profiles
from engines.npz import load_npz
from engines.runner import TensorSpec
from export import onnx_cases
from export.bisect.side import Side
from export.errors import UsageError
from export.subject import Tensor

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray]

LONGEST = 64
"""The largest size that a dimension without a profile is drawn at."""


@dataclass(frozen=True)
class Feeds:
    """The inputs of one run.

    Attributes:
        case: What the case is about, e.g. "left-padding"; "given" for the user's own.
        arrays: By graph input name of A.
        inputs: A module's, by forward's parameter names; else None.
    """

    case: str
    arrays: "Mapping[str, np.ndarray]"
    inputs: Mapping[str, Any] | None = None

    def of(self, side: Side) -> "Arrays":
        """Returns the arrays by the input names of a graph: its own, or by position where it shares none.

        Raises:
            UsageError: The graph takes an input that there is no array for.
        """
        names = _names(side)
        given = dict(self.arrays)
        if not set(names) & set(given) and len(names) == len(given):
            given = dict(zip(names, given.values(), strict=True))
        missing = [name for name in names if name not in given]
        if missing:
            raise UsageError(f"{side.name} takes {missing[0]!r}, which the inputs lack; they are {', '.join(given)}.")
        return {name: given[name] for name in names}


def given(path: Path, side: Side) -> Feeds:
    """Returns the arrays of a .npz by graph input name.

    Raises:
        UsageError: The file cannot be read, or lacks an input.
    """
    arrays = load_npz(path, [TensorSpec(t.name, t.dtype, t.shape) for t in _tensors(side)])
    feeds = Feeds("given", arrays)
    if not side.is_module:
        return Feeds("given", feeds.of(side))
    from export.capture import tree

    def leaf(name: str, example: Any) -> Any:
        if hasattr(example, "shape") and name not in arrays:
            raise UsageError(f"{side.name} takes {name!r}, which {path} lacks; it holds {', '.join(arrays)}.")
        return arrays.get(name, example)

    inputs = tree.rebuild(side.source.inputs, leaf)
    return Feeds("given", side.captured.flatten(inputs), inputs)


def drawn(side: Side) -> Iterator[Feeds]:
    """Yields the cases of parity: the grid of a module's form or example inputs, else random inputs of several sizes.

    Raises:
        UsageError: An input has a dtype that cannot be drawn.
    """
    if side.is_module:
        from export.parity.grid import source_cases

        for case in source_cases(side.source, side.dtype):
            yield Feeds(case.name, side.captured.flatten(case.inputs), dict(case.inputs))
        return
    tensors = _tensors(side)
    profile = profiles.derive({t.name: t.shape for t in tensors}).dims
    small = {name: (low, min(opt, LONGEST), min(high, LONGEST)) for name, (low, opt, high) in profile.items()}
    for name, arrays in onnx_cases.cases(tensors, small):
        yield Feeds(name, arrays)


def _names(side: Side) -> list[str]:
    return [t.name for t in _tensors(side)]


def _tensors(side: Side) -> tuple[Tensor, ...]:
    weights = side.model.graph.initializers
    return tuple(onnx_cases.tensor(value) for value in side.model.graph.inputs if value.name not in weights)
