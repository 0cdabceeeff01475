"""The truth of a decode loop: one forward over whole sequences, in float64, with the budget of the stages."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from export.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from export.capture import Captured, Source
    from export.onnx_subject import OnnxSubject
    from export.parity.compare import Expected
    from export.subject import Exported

    Arrays = dict[str, np.ndarray]


class Truth(Protocol):
    """Draws whole sequences and knows what one forward makes of them."""

    def draw(self, sizes: Mapping[str, int]) -> "Arrays":
        """Returns inputs by the graph's names at these sizes of its dimensions, at the dtype under test."""

    def expected(self, name: str, feeds: "Arrays") -> "dict[str, Expected]":
        """Returns what each output must be, by the graph's names."""


class ModuleTruth:
    """A PyTorch module, widened to float64."""

    def __init__(self, source: "Source", captured: "Captured", dtype: str, seed: int) -> None:
        """Takes the module with what was exported of it."""
        from export.parity.precision import precision
        from export.parity.reference import Reference

        self._source, self._captured, self._seed = source, captured, seed
        self._reference = Reference(source.module, precision(dtype))
        self._drawn: dict[str, Any] = {}

    def draw(self, sizes: Mapping[str, int]) -> "Arrays":
        """Returns inputs as the form or the factory's example has them."""
        from export.model.form import Case

        self._drawn = self._source.draw(Case("decode", dict(sizes), seed=self._seed))
        return self._captured.flatten(self._drawn)

    def expected(self, name: str, feeds: "Arrays") -> "dict[str, Expected]":
        """Returns the float64 outputs for these feeds."""
        import torch

        from export.capture import tree
        from export.parity.case import ParityCase

        def change(leaf_name: str, leaf: Any) -> Any:
            if leaf_name not in feeds or not isinstance(leaf, torch.Tensor):
                return leaf
            array = feeds[leaf_name]
            wide = array.astype("float32") if array.dtype.name in ("float16", "bfloat16") else array
            return torch.from_numpy(wide.copy()).to(leaf.dtype)

        if not self._drawn:
            raise UsageError("draw inputs before asking for their truth")
        truth = self._reference.truth(ParityCase(name, tree.rebuild(self._drawn, change)))
        return dict(zip(self._captured.outputs, truth.same, strict=True))


class OnnxTruth:
    """A ready ONNX file, widened to float64."""

    def __init__(self, subject: "OnnxSubject", exported: "Exported") -> None:
        """Takes the file."""
        self._subject, self._exported = subject, exported

    def draw(self, sizes: Mapping[str, int]) -> "Arrays":
        """Returns random inputs."""
        return self._subject.draw(self._exported, sizes)

    def expected(self, name: str, feeds: "Arrays") -> "dict[str, Expected]":
        """Returns the float64 outputs for these feeds."""
        return {e.name: e for e in self._subject.expected(feeds)}
