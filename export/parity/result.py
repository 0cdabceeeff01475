"""What a parity check says: one row a stage and case, and the report over them, to JSON and back."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from export.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = 1
OK, FAIL, NOT_RUN = "ok", "fail", "not run"


@dataclass(frozen=True)
class Deferred:
    """A candidate that takes memory while it is open: `open` returns it when its turn comes, or a NotRun."""

    open: "Callable[[], Any]"


@dataclass(frozen=True)
class NotRun:
    """A stage that this machine cannot run; it is reported with its reason and never counts as passed.

    Attributes:
        reason: What is missing, as a sentence.
    """

    reason: str


@dataclass(frozen=True)
class ParityRow:
    """One stage on one case.

    Attributes:
        case: Name of the case, e.g. "left-padding".
        stage: "pytorch", "exported", "fused", "lowered", "engine-sm89", or the caller's own.
        status: "ok", "fail" or "not run".
        max_error: Largest absolute error against float64 over all outputs; None where nothing was compared.
        budget: What was allowed at `worst`.
        ratio: Error over budget where it is largest; above 1 the row fails.
        output: Name of the output that holds `worst`.
        worst: Coordinate of that element.
        expected: The float64 value there.
        actual: The value there.
        reason: Why it failed or was not run, or what an ok row cannot show; else empty.
    """

    case: str
    stage: str
    status: str
    max_error: float | None = None
    budget: float | None = None
    ratio: float | None = None
    output: str | None = None
    worst: tuple[int, ...] | None = None
    expected: float | None = None
    actual: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ParityReport:
    """Every row of a check.

    Attributes:
        rows: One a case and stage, in the order they were run.
        dtype: "fp32", "fp16", "bf16" or "tf32".
        masked_rows: The declared policy for rows that see no key: "keep" or "zero".
    """

    rows: tuple[ParityRow, ...]
    dtype: str = "fp16"
    masked_rows: str = "keep"

    @property
    def passed(self) -> bool:
        """True if something ran and nothing failed; rows that did not run are no evidence either way."""
        return any(r.status == OK for r in self.rows) and not any(r.status == FAIL for r in self.rows)

    @property
    def failures(self) -> tuple[ParityRow, ...]:
        """The rows that failed."""
        return tuple(r for r in self.rows if r.status == FAIL)

    def worst(self, stage: str) -> ParityRow | None:
        """Returns the row of a stage that came closest to its budget or exceeded it most; None if it never ran."""
        compared = [r for r in self.rows if r.stage == stage and r.ratio is not None]
        return max(compared, key=lambda r: r.ratio if r.ratio is not None else 0.0, default=None)

    def summary(self) -> str:
        """Returns "n ok, n failed, n not run"."""
        count = Counter(r.status for r in self.rows)
        return f"{count[OK]} ok, {count[FAIL]} failed, {count[NOT_RUN]} not run"

    def _repr_html_(self) -> str:
        """Returns the report as a notebook shows it."""
        from export.report import notebook

        return notebook.of_parity(self)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as a JSON-ready dictionary; numbers that JSON lacks become "nan", "inf", "-inf"."""
        rows = [{k: _plain(v) for k, v in asdict(r).items()} for r in self.rows]
        head = {"schema": SCHEMA, "dtype": self.dtype, "masked_rows": self.masked_rows}
        return head | {"passed": self.passed, "summary": self.summary(), "rows": rows}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "ParityReport":
        """Returns the report that `as_json` wrote.

        Raises:
            UsageError: The data is not such a report.
        """
        known = {f.name for f in fields(ParityRow)}
        try:
            if data["schema"] != SCHEMA:
                raise UsageError(f"This parity report has schema {data['schema']}; this version reads {SCHEMA}.")
            rows = tuple(ParityRow(**{k: _typed(k, v) for k, v in r.items() if k in known}) for r in data["rows"])
            return ParityReport(rows, data["dtype"], data["masked_rows"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"This is not a parity report: {error!r}. Write one with ParityReport.as_json()."
            ) from error


def table(rows: Iterable[ParityRow]) -> str:
    """Returns the rows as aligned plain text, one line each, the reason after an arrow.

    The error is that of the element named, not the largest: each element has a budget of its own.
    """
    lines = [("case", "stage", "status", "error", "error/budget", "worst at")]
    reasons = [""]
    for row in rows:
        place = "" if row.worst is None else f"{row.output}{list(row.worst)}"
        lines.append((row.case, row.stage, row.status.upper(), _short(_error(row)), _short(row.ratio), place))
        reasons.append(f"  -> {row.reason}" if row.reason else "")
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join((line + reason).rstrip() for line, reason in zip(text, reasons, strict=True))


def _error(row: ParityRow) -> float | None:
    """Returns the error at `worst`; where no element is named, the largest."""
    if row.expected is None or row.actual is None:
        return row.max_error
    return 0.0 if row.expected == row.actual else abs(row.actual - row.expected)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _typed(field: str, value: Any) -> Any:
    if value is None:
        return None
    if field == "worst":
        return tuple(int(i) for i in value)
    return float(value) if field in ("max_error", "budget", "ratio", "expected", "actual") else str(value)
