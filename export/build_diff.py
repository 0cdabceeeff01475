"""What differs between two artifact folders, from what their builds recorded; nothing is run.

A change counts as worse only where that is beyond taste: an attention or a kernel that was fused no longer is, a stage
or the build no longer passes, an engine computes in another precision than was asked for. Times and sizes only differ.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from export.artifact_folder import Artifact
from export.fuse.rows import Attention, Verification, summarise
from export.parity.result import FAIL, OK
from export.report.record import Engine, Kernel, Report

T = TypeVar("T")

SCHEMA = 1
ONE_OP = ("fused", "already")
"""The states of an attention that ends as one op."""


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
        section: "verdict", "fusion", "error", "latency", "engine", "precision", "version" or "size".
        what: The thing, e.g. the name of an attention or of a file.
        old, new: A word, a number, or None where that side has no such thing.
        worse: Whether NEW lost something.
        why: Where NEW says why: a sentence, with the rule code of an attention.
    """

    section: str
    what: str
    old: str | float | int | None
    new: str | float | int | None
    worse: bool = False
    why: str = ""


@dataclass(frozen=True)
class Difference:
    """Everything that differs between OLD and NEW."""

    old: Artifact
    new: Artifact
    changes: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the JSON of `diff --json` without the lock's part."""
        sides = {"old": self.old, "new": self.new}
        return {
            "schema": SCHEMA,
            **{name: str(side.folder) for name, side in sides.items()},
            "equal": not self.changes,
            "summary": {name: asdict(summarise(side.report.attentions)) for name, side in sides.items()},
            "changes": [asdict(change) for change in self.changes],
        }


def compare(old: Artifact, new: Artifact) -> Difference:
    """Returns what differs, section by section."""
    sections = (_verdict, _fusion, _errors, _latencies, _engines, _precision, _versions, _sizes)
    return Difference(old, new, tuple(change for section in sections for change in section(old, new)))


def _verdict(old: Artifact, new: Artifact) -> Iterator[Change]:
    before, after = ("PASSED" if a.report.passed else "FAILED" for a in (old, new))
    if before != after:
        yield Change("verdict", "build", before, after, after == "FAILED", " ".join(new.report.failures))


def _fusion(old: Artifact, new: Artifact) -> Iterator[Change]:
    counts = [asdict(summarise(side.report.attentions)) for side in (old, new)]
    for status, before in counts[0].items():
        if before != counts[1][status]:
            yield Change("fusion", status, before, counts[1][status])
    ours, theirs = ({row.name: row for row in side.report.attentions} for side in (old, new))
    for name, before, after in _pairs(ours, theirs):
        was, now = _row(before), _row(after)
        if was != now:
            lost = before is not None and before.status in ONE_OP and (after is None or after.status not in ONE_OP)
            yield Change("fusion", name, was, now, lost, f"{after.code}: {after.reason}" if after else "")


def _row(row: Attention | None) -> str | None:
    if row is None:
        return None
    extras = {"mask": row.mask, "rope": row.rope, "cache": row.cache}
    told = "".join(f", {name} {value}" for name, value in extras.items() if value != "none")
    rows = ", masked rows zero" if row.masked_rows == "zero" else ""
    cap = "" if row.softcap is None else f", softcap {row.softcap:g}"
    return f"{row.status} {row.code} {row.op}{told}{cap}{rows}"


def _errors(old: Artifact, new: Artifact) -> Iterator[Change]:
    """Compares each stage's largest quotient of error and budget, and each attention's error beside its budget."""
    ours, theirs = (_stages(side.report) for side in (old, new))
    for stage, before, after in _pairs(ours, theirs):
        if before != after:
            yield Change("error", stage, before, after, _failed(after) and not _failed(before))
    checks = [{row.name: row.verify for row in side.report.attentions if row.verify} for side in (old, new)]
    for name, one, two in _pairs(*checks):
        was, now = _ratio(one), _ratio(two)
        if was is not None and now is not None and was != now:
            yield Change("error", name, was, now)


def _ratio(check: Verification | None) -> float | None:
    return None if check is None else check.max_error / check.budget if check.budget else 0.0


def _stages(report: Report) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for stage in dict.fromkeys(row.stage for row in report.parity.rows):
        states = {row.status for row in report.parity.rows if row.stage == stage}
        worst = report.parity.worst(stage)
        if FAIL in states:
            found[stage] = "FAILED"
        elif OK in states:
            found[stage] = worst.ratio if worst is not None and worst.ratio is not None else 0.0
        else:
            found[stage] = "NOT RUN"
    return found


def _failed(value: object) -> bool:
    return value == "FAILED"


def _latencies(old: Artifact, new: Artifact) -> Iterator[Change]:
    for provider, before, after in _pairs(old.latencies, new.latencies):
        if before != after:
            yield Change("latency", f"{provider}, median ms", before, after)


def _engines(old: Artifact, new: Artifact) -> Iterator[Change]:
    ours, theirs = ({f"SM {e.sm}": e for e in side.report.engines} for side in (old, new))
    for sm, before, after in _pairs(ours, theirs):
        if before is None or after is None:
            yield Change("engine", sm, before.file if before else None, after.file if after else None, after is None)
            continue
        yield from _kernels(sm, before, after)
        if before.scratch != after.scratch:
            yield Change("engine", f"{sm}, bytes of scratch memory", before.scratch, after.scratch)


def _kernels(sm: str, old: Engine, new: Engine) -> Iterator[Change]:
    for name, before, after in _pairs(old.attentions, new.attentions):
        was, now = _kernel(before), _kernel(after)
        if was != now:
            lost = before is not None and before.fused is True and after is not None and after.fused is False
            yield Change("engine", f"{sm} {name}", was, now, lost, after.why if after else "")


def _kernel(kernel: Kernel | None) -> str | None:
    if kernel is None:
        return None
    state = {True: "fused", False: "decomposed", None: "unknown"}[kernel.fused]
    return f"{state}: {', '.join(kernel.kernels) or 'no layer named'}"


def _precision(old: Artifact, new: Artifact) -> Iterator[Change]:
    asked, asks = (str(side.report.spec.get("dtype")) for side in (old, new))
    if asked != asks:
        yield Change("precision", "asked for", asked, asks)
    ours, theirs = (_computes_in(side.report) for side in (old, new))
    for place, before, after in _pairs(ours, theirs):
        if before != after and before is not None and after is not None:
            yield Change("precision", place, before, after, before == asked and after != asks)


def _computes_in(report: Report) -> dict[str, str]:
    found = {f"SM {e.sm}": e.achieved.precision for e in report.engines}
    for engine in report.engines:
        kernels = engine.attentions.items()
        found |= {f"SM {engine.sm} {name}": kernel.achieved for name, kernel in kernels if kernel.achieved}
    return found


def _versions(old: Artifact, new: Artifact) -> Iterator[Change]:
    ask: dict[str, Callable[[Report], str]] = {
        "opset": lambda report: str(report.opset),
        "exporter": lambda report: report.exporter,
        "builder": lambda report: report.builder or "none",
    }
    for name, read in ask.items():
        if read(old.report) != read(new.report):
            yield Change("version", name, read(old.report), read(new.report))
    for name, before, after in _pairs(old.versions, new.versions):
        if name not in ask and before != after:
            yield Change("version", name, _short(before), _short(after))


def _short(value: str | None) -> str | None:
    """Returns a setting without its quotes; of a fingerprint its first digits, as it only tells that it moved."""
    if value is None:
        return None
    return value[:12] if len(value) == 64 else value.strip('"')


def _sizes(old: Artifact, new: Artifact) -> Iterator[Change]:
    for name, before, after in _pairs(old.sizes, new.sizes):
        if before != after:
            yield Change("size", name, before, after)


def _pairs(old: Mapping[str, T], new: Mapping[str, T]) -> Iterator[tuple[str, T | None, T | None]]:
    for name in dict.fromkeys((*old, *new)):
        yield name, old.get(name), new.get(name)
