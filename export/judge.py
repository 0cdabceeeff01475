"""Which stages of an artifact folder are judged, what makes the verdict FAILED, and what was not run."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import engine_json
from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.gpus import gpus
from engines.profiles import Profile
from export.fuse.rows import Attention
from export.precision import achieved
from export.spec import Spec

if TYPE_CHECKING:
    from export.parity import ParityReport
    from export.precision.range_audit import RangeAudit
    from export.report.record import Engine


def stages(folder: Path, spec: Spec, damaged: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns {stage: candidate} for the parity harness, in the order of the flow; what cannot run is a NotRun.

    Graphs are opened when their turn comes (`Deferred`): each session holds the weights.

    Args:
        folder: The artifact folder, or the one being filled.
        spec: The resolved spec.
        damaged: {file: what is wrong with it}; a stage whose file is among them is not run.
    """
    from export.parity.result import Deferred, NotRun

    target = str(spec.target)
    files = {"exported": "model.onnx", "fused": "fused.onnx", "lowered": f"lowered.{target}.onnx"}
    files |= {f"engine-sm{entry.sm}": entry.file for entry in (engine_json.read_folder(folder) if spec.sm else ())}
    found: dict[str, Any] = {}
    for stage, name in files.items():
        path = folder / name
        if damaged and name in damaged:
            found[stage] = NotRun(f"{name} {damaged[name]}")
        elif stage.startswith("engine"):
            found[stage] = _engine(path)
        else:
            found[stage] = Deferred(partial(_on_ort, path, str(spec.dtype)))
    return found


def masked_rows(attentions: Iterable[Attention], spec: Spec) -> str:
    """Returns what rows without keys must give after fusing: what was asked for, or what a row says has changed."""
    changed = any(row.masked_rows == "zero" for row in attentions)
    return "zero" if changed else spec.masked_rows


def failures(
    parity: "ParityReport", unmet: str | None, engines: "Iterable[Engine]" = (), audit: "RangeAudit | None" = None
) -> tuple[str, ...]:
    """Returns why the verdict is FAILED: stages out of budget, engines of another precision, numbers beyond fp16."""
    found = []
    for stage in dict.fromkeys(row.stage for row in parity.failures):
        rows = [row for row in parity.failures if row.stage == stage]
        more = f" (and {len(rows) - 1} more cases)" if len(rows) > 1 else ""
        cause = audit.cause(rows[0].case) if audit else None
        because = f" The cause: {cause.sentence()}" if cause else ""
        found.append(f"{stage}, case {rows[0].case}: {rows[0].reason or 'outside its budget'}{more}{because}")
    beyond = audit.failures() if audit else ()
    if not found and not parity.passed:
        found.append("No stage could be compared with the truth, so nothing was shown.")
    return (*found, *([unmet] if unmet else []), *achieved.failures(engines, parity.dtype), *beyond)


def not_run(parity: "ParityReport", spec: Spec) -> tuple[str, ...]:
    """Returns one sentence for each thing that was not run, with its reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in parity.rows:
        if row.status == "not run":
            cases.setdefault((row.stage, row.reason), []).append(row.case)
    total = len(dict.fromkeys(row.case for row in parity.rows))
    stages: dict[tuple[str, str], list[str]] = {}
    for (stage, reason), names in cases.items():
        stages.setdefault((reason, "" if len(names) == total else f" on {', '.join(names)}"), []).append(stage)
    sentences = [f"{', '.join(names)}{where}: {reason}" for (reason, where), names in stages.items()]
    if not spec.verify:
        sentences.append("verification of each fusion: switched off by --no-verify")
    return tuple(sentences)


def notes(profile: Profile) -> tuple[str, ...]:
    """Returns what the reader should know about the shapes."""
    return (*_defaults(profile), *_further(profile))


def _further(profile: Profile) -> tuple[str, ...]:
    if not profile.further:
        return ()
    listed = "; ".join(
        ",".join(f"{n}={':'.join(map(str, r))}" for n, r in each.dims.items()) for each in profile.further
    )
    return (f"the engines have further profiles ({listed}); parity cases are of the sizes of the first.",)


def _defaults(profile: Profile) -> tuple[str, ...]:
    if not profile.defaulted:
        return ()
    text = ", ".join(f"{name}={':'.join(map(str, profile.dims[name]))}" for name in profile.defaulted)
    return (f"nobody gave sizes for {text}; these defaults were used (--shapes sets them).",)


def _on_ort(path: Path, dtype: str) -> Any:
    from export.ort_view import open_graph
    from export.parity.result import NotRun

    if dtype == "bf16":
        return path  # the harness knows why that does not run
    try:
        return open_graph(path)
    except UsageError as error:
        return NotRun(f"ONNX Runtime's CPU provider does not take {path.name}: {_short(error, path)}")


def _engine(path: Path) -> Any:
    from engines.engine_runner import EngineRunner
    from export.parity.result import NotRun

    here = gpus()
    if not here.found:
        return NotRun(f"{here.reason}; an engine runs only on the GPU architecture it was built for")
    try:
        return EngineRunner(path)
    except (BackendMissingError, UsageError) as error:  # the latter: engine.json was edited, which is judged elsewhere
        return NotRun(_short(error, path))


def _short(error: ToolkitError, path: Path) -> str:
    """Returns a message without the folder, which is still a temporary one while it is being filled."""
    return str(error).replace(f"{path.parent}{os.sep}", "")
