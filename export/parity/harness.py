"""Judges candidates against float64, case by case: `check` for one, `check_stages` for a pipeline's every stage."""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engines.errors import BackendMissingError, ToolkitError
from export import progress
from export.errors import UsageError
from export.parity import candidates
from export.parity.case import Given, ParityCase, as_case
from export.parity.compare import Expected, Verdict, compare
from export.parity.precision import Precision, precision
from export.parity.reach import DRAWS
from export.parity.result import FAIL, NOT_RUN, OK, Deferred, NotRun, ParityReport, ParityRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from export.parity.reference import Reference, Truth
    from export.parity.runresults import Recording

    AnyArray = npt.NDArray[np.generic]

POLICIES = ("keep", "zero")
BEFORE_FUSING = ("pytorch", "exported")
"""Stages that a masked-row policy does not touch: they must keep the module's own meaning."""


def check(
    candidate: Any,
    reference: Callable[..., Any],
    cases: Iterable[Given],
    dtype: str = "fp16",
    *,
    stage: str = "candidate",
    masked_rows: str = "keep",
    draws: int = DRAWS,
    record: "Recording | None" = None,
) -> ParityReport:
    """Returns one row a case: how far the candidate is from the reference in float64, and how far it may be.

    Args:
        candidate: A function of tensors, an `nn.Module`, the path of an .onnx file (or its bytes; run on ONNX Runtime
            CPU), an object with `.run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]`, or `NotRun(reason)`.
        reference: An `nn.Module` or a function of tensors. It is run in float64 and, for the budget, at `dtype`.
        cases: For each case a `ParityCase`, a dict of inputs by parameter name, or a tuple by position.
        dtype: "fp32", "fp16", "bf16" or "tf32": weights and inputs are rounded to it.
        stage: What to call the candidate in the rows.
        masked_rows: What a query that sees no key must give: "keep" what the reference gives (where that is NaN, zero
            weights are right too), or "zero" weights.
        draws: How many rounded runs of the reference the budget is taken over.
        record: Takes every output, to be saved for Polygraphy's tools.

    Raises:
        UsageError: The dtype, policy or candidate is unknown, there are no cases, or the reference does not run.
    """
    return _judged({stage: candidate}, reference, cases, dtype, masked_rows, draws, record, None, own=False)


def check_stages(
    source: Any,
    captured: Any,
    stages: Mapping[str, Any],
    *,
    dtype: str = "fp16",
    cases: Iterable[Given] | None = None,
    masked_rows: str = "keep",
    draws: int = DRAWS,
    record: "Recording | None" = None,
) -> ParityReport:
    """Returns one row a case and stage, PyTorch at the dtype first; the float64 reference is run once a case.

    Args:
        source: What `export.capture.load_source` returned.
        captured: What `export.capture.capture` returned, or None where inputs need no flattening.
        stages: Candidates as in `check` by stage name, in order: "exported", "fused", "lowered", "engine-sm89".
        dtype: "fp32", "fp16", "bf16" or "tf32".
        cases: Cases to run; by default the grid of the source's form, or its example inputs resized.
        masked_rows: The policy the fuser was given; stages before it keep the module's meaning.
        draws: As in `check`.
        record: As in `check`.

    Raises:
        UsageError: As in `check`.
    """
    from export.parity.grid import source_cases

    grid = source_cases(source, dtype) if cases is None else cases
    flatten = getattr(captured, "flatten", None)
    return _judged(stages, source.module, grid, dtype, masked_rows, draws, record, flatten, own=True)


def _judged(
    stages: Mapping[str, Any],
    target: Callable[..., Any],
    cases: Iterable[Given],
    dtype: str,
    masked_rows: str,
    draws: int,
    record: "Recording | None",
    flatten: "candidates.Flatten | None",
    *,
    own: bool,
) -> ParityReport:
    from export.parity.reference import Reference

    if masked_rows not in POLICIES:
        raise UsageError(f"There is no policy {masked_rows!r} for masked rows: it is {' or '.join(POLICIES)}.")
    row = precision(dtype)
    reference = Reference(target, row, draws=draws)
    stages = {stage: made.open() if isinstance(made, Deferred) else made for stage, made in stages.items()}
    opened = {stage: candidates.opened(candidate, row, flatten) for stage, candidate in stages.items()}
    widening = frozenset(stage for stage, candidate in stages.items() if candidates.keeps_float32(candidate))
    rows: list[ParityRow] = []
    total = len(cases) if isinstance(cases, Sized) else 0
    for i, given in enumerate(cases):
        case = as_case(given, i, target)
        progress.step("parity", i, total, case.name)
        try:
            truth = reference.truth(case)
        except UsageError as error:
            if not own:
                raise
            # A grid made by resizing may ask for a size that the user's module itself does not take.
            rows += [ParityRow(case.name, stage, NOT_RUN, reason=str(error)) for stage in ("pytorch", *stages)]
            continue
        rows += _case_rows(case, truth, reference, opened, widening, row, masked_rows, record, own=own)
    progress.step("parity", total, total)
    if not rows:
        raise UsageError("There are no cases to check: nothing would be shown by passing.")
    return ParityReport(tuple(rows), dtype, masked_rows)


def _case_rows(
    case: ParityCase,
    truth: "Truth",
    reference: "Reference",
    opened: "Mapping[str, candidates.Run | NotRun]",
    widening: frozenset[str],
    dtype: Precision,
    masked_rows: str,
    record: "Recording | None",
    *,
    own: bool,
) -> list[ParityRow]:
    pytorch = _judge(case.name, "pytorch", truth.pytorch, truth.alone, dtype)
    if record is not None:
        record.add("float64", {e.name: e.value for e in truth.keep})
        record.add("pytorch", truth.pytorch)
    # PyTorch's own error may widen the others' budget only where it is itself explained by rounding.
    explained = pytorch.status == OK
    rows = [pytorch] if own else []
    for stage, run in opened.items():
        if isinstance(run, NotRun):
            rows.append(ParityRow(case.name, stage, NOT_RUN, reason=run.reason))
            continue
        try:
            outputs = run(case, reference.inputs(case))
        except BackendMissingError as error:
            rows.append(ParityRow(case.name, stage, NOT_RUN, reason=str(error)))
            continue
        except (ToolkitError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            rows.append(ParityRow(case.name, stage, FAIL, reason=f"It did not run: {type(error).__name__}: {error}"))
            continue
        if record is not None:
            record.add(stage, outputs)
        before = truth.same if explained else truth.alone
        after = truth.zero if masked_rows == "zero" else truth.keep if explained else truth.alone
        expected = before if stage in BEFORE_FUSING else after
        if stage not in widening:
            expected = tuple(replace(e, unabsorbed=None) for e in expected)
        row = _judge(case.name, stage, outputs, expected, dtype)
        rows.append(row if row.status == OK or own or pytorch.status == OK else _shared(row, pytorch))
    return rows


def _judge(
    case: str, stage: str, outputs: "Mapping[str, AnyArray]", expected: tuple[Expected, ...], dtype: Precision
) -> ParityRow:
    if len(outputs) != len(expected):
        reason = f"It returns {len(outputs)} outputs ({', '.join(outputs)}); PyTorch returns {len(expected)}."
        return ParityRow(case, stage, FAIL, reason=reason)
    # By position: an exporter may rename outputs, and a runner returns them in the graph's order.
    pairs = zip(outputs.items(), expected, strict=True)
    verdicts = [compare(x, replace(want, name=name), dtype) for (name, x), want in pairs]
    if not verdicts:
        return ParityRow(case, stage, FAIL, reason="There is no output: nothing was compared.")
    worst = max(verdicts, key=lambda v: (not v.ok, -1.0 if v.ratio is None else v.ratio))
    errors = [v.max_error for v in verdicts if v.max_error is not None]
    return _row(case, stage, worst, max(errors, default=None))


def _row(case: str, stage: str, v: Verdict, error: float | None) -> ParityRow:
    place = (v.output, v.worst, v.expected, v.actual)
    return ParityRow(case, stage, OK if v.ok else FAIL, error, v.budget, v.ratio, *place, v.reason)


def _shared(row: ParityRow, pytorch: ParityRow) -> ParityRow:
    return replace(row, reason=f"{row.reason} PyTorch at this dtype fails here too: {pytorch.reason}")
