"""What a build found out: the one record that the terminal, report.json and `check` are views of."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.achieved import Achieved
from export.fuse.rows import Attention, Read, Rotation, Verification, summarise
from export.precision.range_audit import RangeAudit

if TYPE_CHECKING:
    from export.parity import ParityReport

SCHEMA = 1


@dataclass(frozen=True)
class Kernel:
    """What an attention became in one engine.

    Attributes:
        fused: True for one fused multi-head-attention kernel, False for separate kernels, None where the log is silent.
        kernels: Names of the engine's layers that compute it.
        why: One sentence.
        achieved: The precision its matrix products run in, "fp16", "bf16" or "fp32"; None where the log is silent.
        cause: Where that is not what was asked for: what in the graph makes it so.
    """

    fused: bool | None
    kernels: tuple[str, ...]
    why: str
    achieved: str | None = None
    cause: str = ""


@dataclass(frozen=True)
class Engine:
    """One engine of the build.

    Attributes:
        sm: Compute capability it runs on.
        file: Its name in the folder.
        seconds: What the builder took.
        size: Bytes of the file.
        scratch: Bytes of device scratch memory at the largest shapes; None where the log is silent.
        attentions: {name of the attention's node: what it became}.
        cached: Whether it came from the engine cache; `seconds` is then what it once took.
        achieved: The precision its matrix products and its layers run in.
        memory: Bytes of memory its builder's process had at its peak; None where the system does not say.
    """

    sm: int
    file: str
    seconds: float
    size: int
    scratch: int | None
    attentions: Mapping[str, Kernel]
    cached: bool = False
    achieved: Achieved = field(default_factory=Achieved)
    memory: int | None = None


@dataclass(frozen=True)
class Step:
    """One thing lowering changed for the target, and why.

    Attributes:
        attention: The attention's name in the report.
        action: What was done, in a few words.
        why: The reason, as a sentence.
    """

    attention: str
    action: str
    why: str


@dataclass(frozen=True)
class Report:
    """One build, or one later check of it.

    Attributes:
        spec: The resolved spec under its TOML keys.
        folder: Where the artifacts are.
        digest: sha256 over everything that decides the artifacts.
        truth: What every stage was compared with.
        opset: The opset that was exported; `exporter` wrote it.
        exporter: "dynamo", "torchscript" or what the ONNX file names.
        builder: The engine builder and its version, e.g. "tensorrt-rtx 1.7.1.116"; None without engines.
        profile: {dimension: (min, opt, max)}.
        further_profiles: The same of each further profile of the engines.
        attentions: A row for each attention found.
        steps: What lowering changed.
        rotations: A row for each rotary embedding found.
        engines: One for each architecture.
        parity: Every case of every stage.
        failures: Why the verdict is FAILED, a sentence each; empty when it passed.
        notes: What the reader should know besides: warnings of the export, defaulted shapes, a reused folder.
        decode: The `decode` object of report.json: graphs, caches, lengths, parity; None where it was not asked for.
        not_run: What could not be run here, a sentence each.
        seconds: What the build took from its start to this report, by the clock.
        memory: Bytes of memory this process had at its peak; None where the system does not say.
        range_audit: Which tensors do not fit fp16, and what that does.
        reused: Whether the folder was found finished rather than built.
    """

    spec: Mapping[str, Any]
    folder: Path
    digest: str
    truth: str
    opset: int
    exporter: str
    builder: str | None
    profile: Mapping[str, tuple[int, int, int]]
    attentions: tuple[Attention, ...]
    steps: tuple[Step, ...]
    engines: tuple[Engine, ...]
    parity: "ParityReport"
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    decode: Mapping[str, Any] | None = None
    further_profiles: tuple[Mapping[str, tuple[int, int, int]], ...] = ()
    seconds: float | None = field(default=None, compare=False)
    memory: int | None = field(default=None, compare=False)
    range_audit: RangeAudit = field(default_factory=RangeAudit)
    reused: bool = field(default=False, compare=False)
    rotations: tuple[Rotation, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every stage that ran is within budget and everything required was met."""
        return not self.failures

    def kernel(self, attention: Attention, sm: int) -> Kernel | None:
        """Returns what an attention became in the engine for `sm`; None where that engine's log does not name it."""
        engine = next((e for e in self.engines if e.sm == sm), None)
        return engine.attentions.get(attention.name) if engine else None

    def achieved(self, attention: Attention) -> dict[str, str | None]:
        """Returns {"sm89": the precision an attention runs in} for each engine, as its layers tell."""
        kernels = {f"sm{engine.sm}": self.kernel(attention, engine.sm) for engine in self.engines}
        return {sm: kernel.achieved if kernel else None for sm, kernel in kernels.items()}

    def _repr_html_(self) -> str:
        """Returns the report as a notebook shows it."""
        from export.report import notebook

        return notebook.of_report(self)

    def as_json(self) -> dict[str, Any]:
        """Returns report.json's content (schema 1)."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "failures": list(self.failures),
            "spec": dict(self.spec),
            "digest": self.digest,
            "truth": self.truth,
            "opset": self.opset,
            "exporter": self.exporter,
            "builder": self.builder,
            "profile": {dim: list(sizes) for dim, sizes in self.profile.items()},
            "profiles": [{d: list(s) for d, s in each.items()} for each in (self.profile, *self.further_profiles)],
            "attentions": [
                {**asdict(row), "trail": [asdict(read) for read in row.trail], "achieved": self.achieved(row)}
                for row in self.attentions
            ],
            "rotations": [asdict(row) for row in self.rotations],
            "summary": asdict(summarise(self.attentions)),
            "lowering": [asdict(step) for step in self.steps],
            "engines": [asdict(engine) for engine in self.engines],
            "parity": self.parity.as_json(),
            **({"decode": dict(self.decode)} if self.decode else {}),
            "not_run": list(self.not_run),
            "range_audit": self.range_audit.as_json(),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "memory": self.memory,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], folder: Path) -> "Report":
        """Returns the report that `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data is not such a report; the caller knows which file it was.
        """
        from export.parity import ParityReport

        if data["schema"] != SCHEMA:
            raise ValueError(f"it has schema {data['schema']}; this version reads {SCHEMA}")
        return Report(
            spec=data["spec"],
            folder=folder,
            digest=data["digest"],
            truth=data["truth"],
            opset=data["opset"],
            exporter=data["exporter"],
            builder=data["builder"],
            profile=_ranges(data["profile"]),
            further_profiles=tuple(_ranges(each) for each in data.get("profiles", [])[1:]),
            attentions=tuple(_attention(row) for row in data["attentions"]),
            steps=tuple(Step(**step) for step in data["lowering"]),
            engines=engines_from(data["engines"]),
            parity=ParityReport.from_json(data["parity"]),
            failures=tuple(data["failures"]),
            notes=tuple(data["notes"]),
            not_run=tuple(data["not_run"]),
            range_audit=RangeAudit.from_json(data["range_audit"]),
            decode=data.get("decode"),
            rotations=tuple(Rotation(**{**r, "verify": _verified(r["verify"])}) for r in data.get("rotations", ())),
            seconds=data.get("seconds"),
            memory=data.get("memory"),
        )


def _ranges(data: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {dim: (low, opt, high) for dim, (low, opt, high) in data.items()}


def _attention(row: Mapping[str, Any]) -> Attention:
    own = {key: value for key, value in row.items() if key != "achieved"}
    trail = tuple(Read(**read) for read in row.get("trail", ()))
    return Attention(**{**own, "verify": _verified(row["verify"]), "trail": trail})


def _verified(row: Mapping[str, Any] | None) -> Verification | None:
    return Verification(**row) if row else None


def engines_from(rows: Iterable[Mapping[str, Any]]) -> tuple[Engine, ...]:
    """Returns the engines that rows of report.json say, those of the decode loop among them."""
    return tuple(_engine({key: value for key, value in row.items() if key != "graph"}) for row in rows)


def _engine(row: Mapping[str, Any]) -> Engine:
    kernels = {name: Kernel(**{**k, "kernels": tuple(k["kernels"])}) for name, k in row["attentions"].items()}
    others = tuple((name, precision) for name, precision in row["achieved"]["others"])
    return Engine(**{**row, "attentions": kernels, "achieved": Achieved(**{**row["achieved"], "others": others})})
