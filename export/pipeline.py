"""The whole flow, in order: source -> capture -> fuse -> lower -> engines -> parity -> one artifact folder."""

import logging
import time
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from engines import artifact, memory, profiles
from engines.store import Store, default_root
from export import digest, fusing, plan, progress, reuse, subject
from export.engine_stage import Supply, build_engines
from export.plan import Plan
from export.report import folder as folders
from export.report import record
from export.report.record import Report
from export.spec import Spec

_log = logging.getLogger(__name__)


def build(
    spec: Spec | str | PathLike[str] | None = None, *, force: bool = False, cache: bool = True, **changes: Any
) -> Report:
    """Builds what a spec asks for and returns what was found out about it.

    The artifacts are written whole to `spec.folder`, also when a stage failed its budget: the report in it then says
    so. A folder that is already the one asked for is returned as it is.

    Args:
        spec: What to build: a Spec, or its source alone.
        force: Build again even if the folder is up to date, or the engine cache has its engines.
        cache: Whether engines are taken from the engine cache, and put there.
        **changes: Fields of Spec to set, e.g. `target="ort", dtype="fp32"`.

    Raises:
        UsageError: The source, the shapes or the folder cannot be used.
        BackendMissingError: The target is not installed here, or needs a GPU.
        EngineBuildError: The builder failed.
    """
    start = time.monotonic()
    spec = replace(spec if isinstance(spec, Spec) else Spec(fspath(spec)) if spec else Spec(), **changes)
    todo = plan.make(spec)
    spec = todo.spec
    parts = digest.of_request(spec, todo.gpus)
    parts |= digest.of_onnx(Path(spec.source)) if spec.is_onnx else {}
    of_factory = not spec.is_onnx and ":" in spec.source
    if not force and not of_factory and (found := _found(spec, parts)):
        return found
    _log.info("source    %s", spec.source)
    loaded = subject.load(spec)
    parts |= loaded.parts()
    if not force and of_factory and (found := _found(spec, parts)):
        return found
    with artifact.staged(spec.folder) as folder:
        store = Store(root) if cache and todo.vendor and (root := default_root()) else None
        return _build(todo, loaded, parts, folder, Supply(store, force), start)


def _found(spec: Spec, parts: digest.Parts) -> Report | None:
    found = reuse.find(spec.folder, parts)
    _log.info("cache     %s: %s", "hit" if found.report else "miss", found.why)
    return found.report


def _build(
    todo: Plan, loaded: subject.Subject, parts: digest.Parts, folder: Path, supply: Supply, start: float
) -> Report:
    from export import judge, model_file
    from export.decode import stage
    from export.fuse import Options, fuse
    from export.lower import lower
    from export.pictures import stage as illustrated
    from export.precision import TYPES, achieved, range_audit

    spec, target = todo.spec, str(todo.spec.target)

    progress.step("export", 0, 1)
    exported = loaded.exported()
    progress.step("export", 1, 1)
    _log.info("capture   opset %d by %s", exported.opset, exported.exporter)
    profile = profiles.derive({t.name: t.shape for t in exported.inputs}, loaded.dims, spec.ranges())
    inputs = {t.name: t.shape for t in exported.inputs}
    further = tuple(profiles.derive(inputs, profile.dims, asked) for asked in spec.further_ranges())
    profile = replace(profile, further=further)
    for each in profile.all:
        loaded.refuse_sizes(exported, each.dims, each.defaulted)
    model_file.save(exported.model, folder / "model.onnx")

    fused = fuse(exported.model, Options(verify=spec.verify, masked_rows=spec.masked_rows))
    model_file.save(fused.model, folder / "fused.onnx")
    count = fused.summary
    _log.info("fuse      %d of %d attentions are one op", count.fused + count.already, count.found)

    usual = {name: opt for name, (_, opt, _) in profile.dims.items()}
    lowered = lower(fused.model, target, spec.attention, TYPES[str(spec.dtype)], usual)
    lowered_path = folder / f"lowered.{target}.onnx"
    model_file.save(lowered.model, lowered_path)
    _log.info("lower     for %s: %d changes", target, len(lowered.steps))

    obtained = build_engines(todo, lowered_path, profile, folder, supply)
    built = tuple(o.engine for o in obtained)
    asked = stage.Request(loaded, exported, fused.model, todo, profile)
    decoded = stage.make(asked, folder, supply) if spec.decode else None
    folders.write_engines(folder, built, target, fused.attentions, decoded)

    stages = judge.stages(folder, spec)
    parity = loaded.judge(exported, stages, profile.dims, judge.masked_rows(fused.attentions, spec))
    _log.info("parity    %s", parity.summary())

    engines = tuple(folders.engine(o, lowered, str(spec.dtype)) for o in obtained)
    cases = loaded.feeds(exported, profile.dims)
    audit = range_audit.audit(exported.model, str(spec.dtype), cases, lowered.model, achieved.apart(engines))
    _log.info("range     %s", audit.summary())
    report = Report(
        spec=spec.as_dict(),
        folder=spec.folder,
        digest=digest.combine(parts),
        truth=loaded.truth,
        opset=exported.opset,
        exporter=exported.exporter,
        builder=f"{todo.vendor.name} {todo.vendor.version}" if todo.vendor else None,
        profile=profile.dims,
        further_profiles=tuple(each.dims for each in further),
        attentions=fused.attentions,
        rotations=fused.rotations,
        steps=tuple(record.Step(s.attention, s.action, s.why) for s in lowered.steps),
        engines=engines,
        parity=parity,
        failures=judge.failures(parity, fusing.unmet(fused.attentions, spec.require), engines, audit),
        notes=(
            *exported.warnings,
            *judge.notes(profile),
            *achieved.notes(engines, str(spec.dtype)),
            *audit.warnings(),
        ),
        not_run=judge.not_run(parity, spec),
        seconds=time.monotonic() - start,
        memory=memory.peak(),
        range_audit=audit,
    )
    if decoded:
        report, decoded = stage.judged(report, decoded, loaded, exported, folder)
    illustrated.write(folder, loaded, exported, fused, profile.dims, str(spec.dtype))
    folders.write(folder, report, parts, built, exported, decoded)
    return report
