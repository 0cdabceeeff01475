"""The decode graphs of one build: made from the fused model, lowered, built, judged, and said in the report."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from engines import profiles
from engines.cached import Obtained
from engines.decoding import Cache, Decoding
from engines.errors import BackendMissingError
from engines.generator import Generator
from engines.gpus import gpus
from engines.profiles import Profile
from export import model_file
from export.decode.given import given
from export.decode.grow import Step, grow
from export.decode.judge import Own
from export.decode.static import WRITE_INDICES, Static
from export.decode.tokens import read
from export.decode.uncached import uncached
from export.engine_stage import Supply, build_engines
from export.errors import UsageError
from export.graph.shapes import infer
from export.graph.values import dim
from export.lower import lower
from export.ort_view import open_graph
from export.plan import Plan
from export.precision import TYPES, achieved
from export.report import folder as folders
from export.report import record
from export.report.record import Report
from export.spec import Spec

if TYPE_CHECKING:
    from export.parity.result import NotRun
    from export.subject import Exported, Subject

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """The graphs of a build, and what they became.

    Attributes:
        decoding: How they are run.
        axes: Batch and token dimension of the model without a cache.
        files: {"prefill": file name, "step": file name}, one and the same where one graph is both.
        own: The padding masks and caches that the model came with.
        steps: What lowering changed, by graph.
        built: Every engine, with the graph it was built of.
        engines: Their rows of the report, likewise.
    """

    decoding: Decoding
    axes: tuple[int | str, int | str]
    files: Mapping[str, str]
    own: Own
    steps: Mapping[str, tuple[record.Step, ...]]
    built: tuple[tuple[str, Obtained], ...] = ()
    engines: tuple[tuple[str, record.Engine], ...] = ()


@dataclass(frozen=True)
class Request:
    """What is decoded, and for what: the subject, its exported and fused graphs, the plan and the profile."""

    subject: "Subject"
    exported: "Exported"
    fused: ir.Model
    todo: Plan
    profile: Profile


def make(asked: Request, folder: Path, supply: Supply) -> Decoded:
    """Writes the decode graphs of a fused model to a folder, and builds their engines where the target has any.

    Raises:
        UsageError: The model cannot be run a token at a time, or the cache length does not fit the profile.
        EngineBuildError: The builder failed.
    """
    fused, todo = asked.fused, asked.todo
    target = str(todo.spec.target)
    step = given(fused)
    derived = step is None
    if todo.vendor is not None:
        return _static(asked, uncached(step) if step else fused, step.caches if step else (), folder, supply)
    step = step or grow(fused)
    axes = _axes(step)
    capacity = _capacity(asked, axes[1], step.tokens)
    name = f"decode.{target}.onnx"
    lowered = lower(step.model, target, todo.spec.attention, TYPES[str(todo.spec.dtype)])
    model_file.save(lowered.model, folder / name)
    _log.info("decode    a growing cache of %d tensors, up to %d tokens", len(step.caches), capacity)
    decoding = Decoding("growing", step.tokens, step.mask, step.caches, capacity)
    own = Own((step.mask,) if step.mask else (), () if derived else step.caches)
    return Decoded(decoding, axes, {"prefill": name, "step": name}, own, {"step": _said(lowered.steps)})


def _static(asked: Request, fused: ir.Model, caches: tuple[Cache, ...], folder: Path, supply: Supply) -> Decoded:
    todo, profile = asked.todo, asked.profile
    target, dtype = str(todo.spec.target), str(todo.spec.dtype)
    model = fused.clone()
    infer(model)
    tokens = read(model.graph)
    axes = (tokens.batch, tokens.length)
    capacity = _capacity(asked, tokens.length, tuple(str(v.name) for v in tokens.inputs))
    static = Static(fused, capacity)
    low, opt, high = profile.dims[tokens.length]
    prompts = {**profile.dims, tokens.length: (low, min(opt, capacity), min(high, capacity))}
    files: dict[str, str] = {}
    steps: dict[str, tuple[record.Step, ...]] = {}
    built: list[tuple[str, Obtained]] = []
    engines: list[tuple[str, record.Engine]] = []
    for name, graph in (("prefill", static.prefill), ("step", static.step)):
        lowered = lower(graph, target, todo.spec.attention, TYPES[dtype])
        files[name] = f"{name}.{target}.onnx"
        model_file.save(lowered.model, folder / files[name])
        shapes = profiles.derive({str(v.name): _shape(v) for v in lowered.model.graph.inputs}, prompts)
        obtained = build_engines(todo, folder / files[name], shapes, folder, supply, stem=name)
        built += [(name, o) for o in obtained]
        engines += [(name, folders.engine(o, lowered, dtype)) for o in obtained]
        steps[name] = _said(lowered.steps)
    _log.info("decode    a static cache of %d tensors, %d tokens", len(static.caches), capacity)
    own = Own(tuple(str(m.name) for m in tokens.masks), caches)
    decoding = Decoding("static", static.tokens, None, static.caches, capacity, WRITE_INDICES)
    return Decoded(decoding, axes, files, own, steps, tuple(built), tuple(engines))


def told(report: Report, decoded: Decoded) -> Report:
    """Returns the report with what the graphs of a decode loop are; `judge` adds whether they are right."""
    return replace(
        report,
        decode={
            **decoded.decoding.as_dict(),
            "dimensions": list(decoded.axes),
            "own": asdict(decoded.own),
            "graphs": dict(decoded.files),
            "lowering": {name: [asdict(s) for s in steps] for name, steps in decoded.steps.items()},
            "engines": [{"graph": name, **asdict(engine)} for name, engine in decoded.engines],
        },
    )


def judged(
    report: Report, decoded: Decoded, subject: "Subject", exported: "Exported", folder: Path
) -> tuple[Report, Decoded]:
    """Returns the report with the decode loop and whether it is right; what was learnt of padding is in both."""
    after = judge(told(report, decoded), subject, exported, folder)
    return after, replace(decoded, decoding=Decoding.from_dict(after.decode or {}))


def judge(report: Report, subject: "Subject", exported: "Exported", folder: Path) -> Report:
    """Returns the report with what prefill and steps give beside one forward, in its verdict too."""
    from export.decode.judge import Judge
    from export.judge import failures, not_run
    from export.parity.result import ParityReport

    if report.decode is None:
        return report
    spec = Spec().with_values(report.spec, "the resolved spec")
    decoding, files, dtype = Decoding.from_dict(report.decode), report.decode["graphs"], str(spec.dtype)
    batch, length = report.decode["dimensions"]
    judge = Judge(subject.whole(exported), decoding, report.profile, (batch, length), _own(report.decode["own"]), dtype)
    rows = judge.rows("decode", _on_cpu(judge.decoding, files, folder, dtype))
    for sm in spec.sm:
        rows += judge.rows(f"decode-sm{sm}", _on_gpu(judge.decoding, folder, sm))
    parity = ParityReport(tuple(rows), dtype)
    engines = record.engines_from(report.decode["engines"])
    ran = parity.failures or parity.passed  # with bfloat16 and no GPU nothing can: NOT RUN says so
    wrong = failures(parity, None, engines) if ran else achieved.failures(engines, dtype)
    _log.info("decode    %s", parity.summary())
    return replace(
        report,
        decode={**report.decode, **judge.decoding.as_dict(), "steps": judge.steps, "parity": parity.as_json()},
        failures=(*report.failures, *wrong),
        not_run=(*report.not_run, *not_run(parity, replace(spec, verify=True))),
    )


def _on_cpu(
    decoding: Decoding, files: Mapping[str, str], folder: Path, dtype: str
) -> "Callable[[], Generator] | NotRun":
    from export.parity.result import NotRun

    if dtype == "bf16":
        return NotRun("ONNX Runtime's CPU provider has no bfloat16 kernels for attention and matrix products.")
    runners = {name: open_graph(folder / name) for name in dict.fromkeys(files.values())}
    return lambda: Generator(runners[files["prefill"]], runners[files["step"]], decoding)


def _on_gpu(decoding: Decoding, folder: Path, sm: int) -> "Callable[[], Generator] | NotRun":
    from export.decode.opening import engine_loop
    from export.parity.result import NotRun

    here = gpus()
    if not here.found:
        return NotRun(f"{here.reason}; an engine runs only on the GPU architecture it was built for")
    try:
        return engine_loop(decoding, folder, sm)
    except (BackendMissingError, UsageError) as error:
        return NotRun(str(error).replace(f"{folder}{os.sep}", ""))


def _capacity(asked: Request, length: int | str, tokens: tuple[str, ...]) -> int:
    """Returns how many tokens a row of the cache may hold; the model was run with as many."""
    dims, wanted = asked.profile.dims, asked.todo.spec.cache_length
    if not isinstance(length, str) or length not in dims:
        raise UsageError(f"{', '.join(tokens)} has no free length; export it with that axis free to decode.")
    low, opt, high = dims[length]
    capacity = wanted or high
    if capacity > high:
        asked.subject.refuse_sizes(asked.exported, {**dims, length: (low, opt, capacity)})
    return capacity


def _own(told: Mapping[str, Any]) -> Own:
    return Own(tuple(told["masks"]), tuple(Cache(**cache) for cache in told["caches"]))


def _axes(step: Step) -> tuple[int | str, int | str]:
    value = next(v for v in step.model.graph.inputs if v.name == step.tokens[0])
    batch, length = dim(value, 0), dim(value, 1)
    if batch is None or length is None:
        raise UsageError(f"{value.name!r} {value.shape} must name its batch and token axes to be decoded.")
    return batch, length


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    return tuple(d if isinstance(d, int) else d.value or f"{value.name}.{i}" for i, d in enumerate(value.shape or ()))


def _said(steps: Iterable[Any]) -> tuple[record.Step, ...]:
    return tuple(record.Step(s.attention, s.action, s.why) for s in steps)
