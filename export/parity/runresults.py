"""Every stage's outputs as Polygraphy RunResults, so that its tools can read them.

One runner per stage, one iteration per case, "float64" first: `polygraphy inspect data FILE` prints them, and
`Comparator.compare_accuracy(RunResults.load(FILE))` compares them its own way.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    AnyArray = npt.NDArray[np.generic]


class Recording:
    """Outputs by stage, in the order of the cases; give it to `check(..., record=...)`, then `save` it."""

    def __init__(self) -> None:
        """Starts empty."""
        self._outputs: dict[str, list[dict[str, AnyArray]]] = {}

    def add(self, stage: str, outputs: "Mapping[str, AnyArray]") -> None:
        """Appends one case's outputs to a stage; bfloat16 is widened to float32, which Polygraphy's JSON can hold."""
        widened = {k: x.astype("float32") if x.dtype.name == "bfloat16" else x for k, x in outputs.items()}
        self._outputs.setdefault(stage, []).append(widened)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recording as a Polygraphy RunResults JSON file, whole or not at all.

        Outputs are compared by position here but by name there, so every stage's take the last stage's names.

        Raises:
            UsageError: Nothing was recorded, or the file cannot be written.
        """
        from polygraphy.comparator import IterationResult, RunResults

        if not self._outputs:
            raise UsageError("Nothing was recorded: pass the recording to check(..., record=recording) first.")
        names = list(next(reversed(self._outputs.values()))[0])
        results = RunResults()
        for stage, cases in self._outputs.items():
            named = [dict(zip(names, outputs.values(), strict=False)) for outputs in cases]
            results.append((stage, [IterationResult(x, runtime=0.0, runner_name=stage) for x in named]))
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            # Not results.save(): it writes a line of log to stdout, which belongs to the caller.
            temporary.write_text(results.to_json(), encoding="utf-8")
            os.replace(temporary, target)
        except OSError as error:
            raise UsageError(f"Could not write {target}: {error.strerror or error}.") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
