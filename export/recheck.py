"""Judging an artifact folder again: are its files the ones that were written, and are its stages still right?

Nothing is built. The truth is the source the folder was built from, if it is here and unchanged; otherwise the folder's
own model.onnx in float64, which is said.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines import engine_json
from export import digest, fusing, judge, reuse
from export.artifact_folder import read_json
from export.errors import ToolkitError, UsageError
from export.report.folder import REPORT, SPEC
from export.report.record import Report
from export.spec import Spec, read_toml
from export.subject import Exported, Subject, Tensor, load, recalled

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Judge:
    """Who knows the truth, with the graph's interface, and what to say about that choice."""

    subject: Subject
    exported: Exported
    note: str | None


def recheck(folder: Path) -> Report:
    """Returns the folder's report with every stage run again; the folder is not changed.

    Raises:
        UsageError: The folder is no finished artifact of this toolkit.
    """
    recorded = read_json(folder / engine_json.NAME)
    try:
        before = Report.from_json(read_json(folder / REPORT), folder)
        spec = read_toml(folder / SPEC)
        files, parts = {**recorded["files"], **_engines(recorded)}, dict(recorded["parts"])
        inputs = tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in recorded["inputs"])
        outputs = tuple(recorded["outputs"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder} is not a complete artifact ({error!r}). Build it again.") from error
    damaged = reuse.changed_files(folder, files) | reuse.changed_record(recorded)
    count = len(files) + 1
    _log.info("files     %s", f"{len(damaged)} of {count} changed" if damaged else f"{count} intact")
    exported = recalled(folder / "model.onnx", inputs, outputs, before.opset, before.exporter)
    judging = _who(spec, parts, exported, folder, damaged)
    _log.info("truth     %s", judging.subject.truth)
    stages = judge.stages(folder, spec, damaged)
    unmet = fusing.unmet(before.attentions, spec.require)
    audit = before.range_audit  # of the graph that was built, whose files are compared
    parity = judging.subject.judge(judging.exported, stages, before.profile, judge.masked_rows(before.attentions, spec))
    _log.info("parity    %s", parity.summary())
    changed = [f"{name} {what}." for name, what in damaged.items()]
    after = replace(
        before,
        folder=folder,
        truth=judging.subject.truth,
        parity=parity,
        failures=(*changed, *judge.failures(parity, unmet, before.engines, audit)),
        notes=(judging.note,) if judging.note else (),
        not_run=judge.not_run(parity, spec),
    )
    if after.decode is None:
        return after
    from export.decode import stage

    return stage.judge(after, judging.subject, judging.exported, folder)


def _who(spec: Spec, parts: digest.Parts, exported: Exported, folder: Path, damaged: dict[str, str]) -> _Judge:
    try:
        loaded = load(spec)
        now = loaded.parts()
        moved = digest.difference({key: parts.get(key, "") for key in now}, now)
        if not moved:
            return _Judge(loaded, loaded.recalled(exported), None)
        why = f"{spec.source} has changed since the build ({moved})"
    except ToolkitError as error:
        why = f"{spec.source} cannot be loaded here: {error}"
    if "model.onnx" in damaged:
        raise UsageError(f"{why}, and model.onnx of {folder} {damaged['model.onnx']}: there is nothing to judge by.")
    from export.onnx_subject import OnnxSubject

    own = OnnxSubject(
        folder / "model.onnx", str(spec.dtype), spec.seed, because="what it was built from is not at hand"
    )
    return _Judge(own, exported, f"{why.rstrip('.')}. Judged by the folder's own model.onnx instead.")


def _engines(recorded: dict[str, Any]) -> dict[str, str]:
    return {entry["file"]: entry["sha256"] for entry in recorded["engines"]}
