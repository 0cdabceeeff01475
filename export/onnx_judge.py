"""Every stage of an ONNX file's build against the file's truth, a session at a time.

The weights of one session are freed before the next is opened, so that a large file needs memory for one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export import onnx_measure, progress
from export.errors import ToolkitError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from export.parity.result import ParityRow

    Arrays = dict[str, npt.NDArray[np.generic]]


def judged(
    open_measure: "Callable[[], onnx_measure.Measure]",
    cases: "Sequence[tuple[str, Arrays]]",
    stages: Mapping[str, Any],
    dtype: str,
    *,
    own: bool,
) -> "tuple[str, tuple[ParityRow, ...]]":
    """Returns (how the truth was computed, a row for each case and stage).

    Args:
        open_measure: Returns what the stages are measured with.
        cases: (name, feeds) of each.
        stages: Candidates as for `export.parity.check`.
        dtype: Precision under test.
        own: Whether the stage "exported" is the measure's own first execution, which cannot excuse itself.
    """
    from export.parity.precision import precision
    from export.parity.result import NOT_RUN, ParityRow

    row = precision(dtype)
    measure = open_measure()
    how = measure.how
    exact = {name: _tried(measure.truth, feeds) for name, feeds in cases}
    executions = measure.executions
    del measure
    runs = {name: [_tried(run, feeds) for run in executions] for name, feeds in cases}
    del executions
    found: dict[str, dict[str, ParityRow]] = {name: {} for name, _ in cases}
    for at, (stage, candidate) in enumerate(stages.items()):
        progress.step("parity", at, len(stages), stage)
        run = _opened(candidate, row)
        for name, feeds in cases:
            failed = next((error for error in (exact[name], *runs[name]) if isinstance(error, ToolkitError)), None)
            if failed is not None:
                found[name][stage] = ParityRow(name, stage, NOT_RUN, reason=f"The file does not run: {failed}")
                continue
            given = runs[name][1:] if stage == "exported" and own else runs[name]
            found[name][stage] = _judged(name, stage, run, feeds, exact[name], given, row)
        del run
    return how, tuple(r for by in found.values() for r in by.values())


def _tried(run: Any, feeds: "Arrays") -> "Arrays | ToolkitError":
    try:
        outputs: Arrays = run(feeds)
        return outputs
    except ToolkitError as error:
        return error


def _opened(candidate: Any, dtype: Any) -> Any:
    from export.parity import candidates
    from export.parity.result import Deferred

    return candidates.opened(candidate.open() if isinstance(candidate, Deferred) else candidate, dtype)


def _judged(case: str, stage: str, run: Any, feeds: "Arrays", exact: Any, runs: Any, dtype: Any) -> Any:
    from export.parity.case import ParityCase
    from export.parity.compare import compare
    from export.parity.result import FAIL, NOT_RUN, OK, NotRun, ParityRow

    if isinstance(run, NotRun):
        return ParityRow(case, stage, NOT_RUN, reason=run.reason)
    try:
        outputs = run(ParityCase(case, feeds), feeds)
    except ToolkitError as error:
        return ParityRow(case, stage, FAIL, reason=f"It did not run: {error}")
    if list(outputs) != list(exact):
        return ParityRow(case, stage, FAIL, reason=f"Its outputs are {list(outputs)}; the file's are {list(exact)}.")
    verdicts = [compare(outputs[e.name], e, dtype) for e in onnx_measure.expected(exact, runs)]
    worst = max(verdicts, key=lambda v: (not v.ok, -1.0 if v.ratio is None else v.ratio))
    largest = max((v.max_error for v in verdicts if v.max_error is not None), default=None)
    place = (worst.output, worst.worst, worst.expected, worst.actual)
    return ParityRow(
        case, stage, OK if worst.ok else FAIL, largest, worst.budget, worst.ratio, *place, reason=worst.reason
    )
