"""One ONNX file into one engine for one architecture, in a process of its own.

The process costs 0.07 s an engine (measured: the interpreter and the vendor's import) and buys that a crash inside the
vendor's library, which happens, is an `EngineBuildError` with a reason; and several architectures may build at once.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines import failure, flags, graph, kernels, layers, screen
from engines.errors import BackendMissingError, EngineBuildError, UsageError
from engines.flags import Flags
from engines.graph import Graph
from engines.kernels import KernelChoice
from engines.layers import Layer
from engines.profiles import Profile
from engines.runner import TensorSpec
from engines.vendor import Vendor, load

_log = logging.getLogger(__name__)
_LEVELS = {"WARNING": logging.WARNING, "INFO": logging.INFO, "VERBOSE": logging.DEBUG}  # errors end up in exceptions
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from engines.worker import main; main()"


@dataclass(frozen=True)
class Progress:
    """How far a build is: `done` of `steps` in a phase of the builder's, e.g. "Building engine"."""

    phase: str
    done: int
    steps: int


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built, and what the builder told about it.

    Attributes:
        path: The engine file.
        vendor: "tensorrt-rtx" or "tensorrt".
        version: Version of the builder; RTX engines run on that version only.
        sm: Architecture it runs on.
        seconds: What the builder took, without parsing and process start.
        size: Bytes of the engine.
        scratch: Bytes of device scratch memory at the profile's largest shapes; None where the log does not say.
        memory: Bytes of memory the builder's process had at its peak; None where the system does not say.
        profile: The shapes it was built for.
        inputs, outputs: Its tensors, dtypes as the engine has them.
        layers: What it will launch, in order; () where the log does not list it.
        attentions: {name of the ONNX node: what it became}.
        messages: Everything the builder said, (severity, text) each.
        flags: What was asked of the builder beyond the graph.
    """

    path: Path
    vendor: str
    version: str
    sm: int
    seconds: float
    size: int
    scratch: int | None
    memory: int | None
    profile: Profile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    attentions: dict[str, KernelChoice]
    messages: tuple[tuple[str, str], ...]
    flags: Flags = field(default_factory=Flags)

    @property
    def log(self) -> str:
        """The messages, a line "SEVERITY: text" each."""
        return "\n".join(f"{severity}: {text}" for severity, text in self.messages)


def build_engine(
    onnx: Path,
    out: Path,
    *,
    vendor: str,
    sm: int,
    profile: Profile,
    on_progress: Callable[[Progress], None] | None = None,
    attentions: Mapping[str, Sequence[str]] | None = None,
    asked: Flags = Flags(),  # noqa: B008 (frozen)
) -> BuiltEngine:
    """Returns the engine built from an ONNX file, written whole to `out` or not at all.

    Safe to call from several threads at once, one architecture each. Precision is the ONNX file's: the network is
    strongly typed.

    Args:
        onnx: The model; its external data lies beside it.
        out: The engine file to write. Its folder must exist.
        vendor: "tensorrt-rtx" or "tensorrt".
        sm: Architecture, e.g. 89.
        profile: Shapes to build for (`engines.profiles.derive`).
        on_progress: Called in this thread as the build goes on; what it raises stops the build.
        attentions: {name: names of the ONNX nodes that compute it, its Attention or Softmax node first}; None means
            every Attention node, and every Softmax whose result goes to a MatMul.
        asked: What is asked of the builder beyond the graph.

    Raises:
        UsageError: The file is no ONNX model, or the vendor cannot take it, its dtypes, the architecture, the profile
            or what is asked; or `out` cannot be written.
        BackendMissingError: The vendor is not installed or, for TensorRT, there is no GPU.
        EngineBuildError: The parser refused a node, the builder failed or its process crashed.
    """
    loaded = load(vendor)
    flags.refuse(asked, loaded)
    facts = graph.read(onnx)
    foreign = screen.check(facts, loaded, sm, profile)
    temporary = _reserve(out)
    try:
        request = {
            "vendor": vendor,
            "onnx": os.path.abspath(onnx),  # links kept: external data lies beside the link
            "engine": os.path.abspath(temporary),
            "sm": sm,
            "profiles": [{n: (s.min, s.opt, s.max) for n, s in each.inputs.items()} for each in profile.all],
            "foreign": [(n.name, n.domain, n.op, n.function) for n in foreign],
            "flags": asked.as_dict(),
        }
        log: list[tuple[str, str]] = []
        answer, code, stderr = _ask(request, log, on_progress)
        built = _built(answer, code, stderr, log, facts, loaded, sm)
        os.replace(temporary, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return describe(out, facts, profile, asked, {**built, "vendor": vendor, "sm": sm}, log, attentions)


def describe(
    engine: Path,
    facts: Graph,
    profile: Profile,
    asked: Flags,
    built: Mapping[str, Any],
    log: Sequence[tuple[str, str]],
    attentions: Mapping[str, Sequence[str]] | None = None,
) -> BuiltEngine:
    """Returns what there is to know of an engine, from what its builder told: now, or when it was put into a cache.

    Args:
        engine: The engine file.
        facts: Of the ONNX file.
        profile: Shapes it was built for.
        asked: What was asked of the builder.
        built: "vendor", "version", "sm", "seconds", "size", "memory", {tensor: dtype} of "inputs" and "outputs", and
            {tensor: sizes, -1 where they vary} of "shapes".
        log: (severity, text) of each message.
        attentions: As for `build_engine`.
    """
    messages = [text for _, text in log]
    listed = layers.parse(messages)
    named = attentions if attentions is not None else {a.name: a.nodes for a in facts.attentions}
    known = {a.name: (a.dtype, a.head_size) for a in facts.attentions}
    return BuiltEngine(
        path=engine,
        vendor=built["vendor"],
        version=built["version"],
        sm=built["sm"],
        seconds=built["seconds"],
        size=built["size"],
        scratch=layers.scratch(messages),
        memory=built["memory"],
        profile=profile,
        inputs=_typed(facts.inputs, built["inputs"], built["shapes"]),
        outputs=_typed(facts.outputs, built["outputs"], built["shapes"]),
        layers=listed,
        attentions=kernels.attention_kernels(listed, named, known, len(profile.all)),
        messages=tuple((severity, text) for severity, text in log),
        flags=asked,
    )


def _reserve(out: Path) -> Path:
    """Returns a new empty file beside `out`, so that an unwritable folder is known before a long build."""
    path = out.with_name(f".{out.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; choose another folder.") from error
    return path


def _ask(
    request: dict[str, Any], log: list[tuple[str, str]], on_progress: Callable[[Progress], None] | None
) -> tuple[dict[str, Any], int, str]:
    """Returns the worker's last line ({} where it died before), its exit status and its stderr; fills `log`."""
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8"
        ) as process:
            try:
                answer = _converse(process, request, log, on_progress)
                code = process.wait()
            finally:
                process.kill()  # nothing to do after a normal end; stops the build after an exception or Ctrl-C
        stderr.seek(0)
        return answer, code, stderr.read()


def _converse(
    process: "subprocess.Popen[str]",
    request: dict[str, Any],
    log: list[tuple[str, str]],
    on_progress: Callable[[Progress], None] | None,
) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None  # both were asked for as pipes
    with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status tells
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    answer: dict[str, Any] = {}
    for line in process.stdout:
        try:
            said = json.loads(line)
        except ValueError:  # half a line, of a process that crashed
            continue
        if "log" in said:
            severity, text = said["log"]
            log.append((severity, text))
            if severity in _LEVELS:
                _log.log(_LEVELS[severity], "%s", text)
        elif "progress" in said:
            if on_progress:
                on_progress(Progress(*said["progress"]))
        else:
            answer = said
    return answer


def _built(
    answer: dict[str, Any],
    code: int,
    stderr: str,
    log: Sequence[tuple[str, str]],
    facts: Graph,
    vendor: Vendor,
    sm: int,
) -> dict[str, Any]:
    """Returns the answer of a successful build; raises what any other answer means."""
    title = f"{vendor.title} {vendor.version}"
    if "built" in answer:
        return dict(answer["built"])
    if "refused" in answer:
        raise UsageError(answer["refused"])
    if "missing" in answer:
        raise BackendMissingError(answer["missing"])
    if "parse" in answer:
        raise EngineBuildError(failure.parse_failure(title, answer["parse"], log))
    if answer.get("failed"):
        raise EngineBuildError(f"{title} could not build the model for SM {sm}: {failure.sentence(answer['failed'])}")
    if "failed" in answer:
        raise EngineBuildError(failure.build_failure(title, sm, facts, log))
    raise EngineBuildError(failure.crash(title, code, facts, log, stderr))


def _typed(
    specs: Sequence[TensorSpec], dtypes: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> tuple[TensorSpec, ...]:
    """Returns the tensors as the builder has them: its dtypes, and its sizes where it found more fixed ones."""
    found = []
    for spec in specs:
        sizes = shapes.get(spec.name, ())
        known = zip(sizes, spec.shape, strict=True) if len(sizes) == len(spec.shape) else ((-1, s) for s in spec.shape)
        shape = tuple(size if size >= 0 else name for size, name in known)
        found.append(TensorSpec(spec.name, dtypes.get(spec.name, spec.dtype), shape))
    return tuple(found)
