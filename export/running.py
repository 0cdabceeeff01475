"""Running a built or exported model from Python: what `run` does, on arrays in hand."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def run(
    model: str | PathLike[str], inputs: Mapping[str, "np.ndarray"], provider: str | None = None
) -> dict[str, "np.ndarray"]:
    """Returns every output by name.

    Args:
        model: An artifact folder, an .onnx file, or an engine beside its engine.json.
        inputs: Arrays by the names of the graph's inputs; bfloat16 is ml_dtypes.bfloat16.
        provider: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"; None means an engine's own, else "cpu".

    Raises:
        UsageError: There is no such model, or the inputs do not fit.
        BackendMissingError: The provider is not usable here; another one is never taken instead.
    """
    from export.runnable import open_runnable

    return open_runnable(Path(model), provider).runner.run(inputs)
