"""What a bench found out, as one JSON document: versions, machine, command, and a row for every contender."""

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from export.bench.ceilings import Ceilings
from export.bench.spread import Ratio, Timing

if TYPE_CHECKING:
    from export.bench.gpu_targets import Target

SCHEMA = 1
PACKAGES = ("attnproof", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")
TIMED, WRONG, NOT_RUN = "timed", "WRONG", "NOT RUN"


@dataclass(frozen=True)
class Row:
    """One contender of one case.

    Attributes:
        name: As the tables call it.
        kind: What sort of contender: `export.bench.contender`.
        route: The export it was made of, or "".
        stage: "exported", "fused" or "lowered" for the stages of this project, "set" where ONNX Runtime is told
            to leave an optimisation out, or "".
        status: "timed"; "WRONG" where it was timed and its answer is outside its budget; "NOT RUN".
        reason: Why, where the status is not "timed".
        timing: Its times.
        memory_bytes: Resident memory that opening it and one run took at the peak; None where not known.
        speedup: How many times as fast as the baseline it is.
        ours: How many times as fast as it attnproof's graph is: of the same export, or the slowest of all exports where
            it was made of none.
        error: Largest absolute error against float64.
        budget_used: Error over budget where it is largest; above 1 it is wrong.
        gflops: Useful floating-point operations a second, 1e9.
        of_floor: Roofline floor over its median time: 1 is the machine's best.
        items_per_second: Tokens (or what the case counts) a second.
    """

    name: str
    kind: str
    route: str = ""
    stage: str = ""
    status: str = TIMED
    reason: str = ""
    timing: Timing | None = None
    memory_bytes: int | None = None
    speedup: Ratio | None = None
    ours: Ratio | None = None
    error: float | None = None
    budget_used: float | None = None
    gflops: float | None = None
    of_floor: float | None = None
    items_per_second: float | None = None


@dataclass(frozen=True)
class Case:
    """One case and all its rows.

    Attributes:
        name: As the tables call it.
        sizes: Its sizes by name.
        dtype: Of the computation.
        baseline: Name and route of the row that speed-ups are over.
        item: What is counted in a second, as "tokens".
        flops: Floating-point operations of one call; None where not counted.
        bytes: Least memory traffic of one call.
        counted: How both were counted.
        floor_ms: The roofline floor: the time that no machine with these ceilings beats.
        rows: A row for every contender.
    """

    name: str
    sizes: dict[str, int]
    dtype: str
    baseline: str
    item: str
    flops: int | None
    bytes: int
    counted: str
    floor_ms: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Result:
    """A whole run.

    Attributes:
        command: The command line that gives it.
        date: ISO day.
        seed: Of all inputs.
        device: "cpu" or "cuda".
        threads: Threads of every contender.
        pinning: How threads were pinned, in words.
        seconds: About how long each case was timed.
        ceilings: The machine's two ceilings.
        cases: The cases.
        targets: Of a GPU run: what it should reach, and whether it did; left out of the JSON of a CPU run.
        machine: Kind of machine, in words that name no owner.
        versions: Of the packages that compute.
    """

    command: str
    date: str
    seed: int
    device: str
    threads: int
    pinning: str
    seconds: float
    ceilings: Ceilings
    cases: tuple[Case, ...]
    targets: "tuple[Target, ...]" = ()
    machine: str = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def as_json(self) -> dict[str, Any]:
        """Returns the JSON document (schema 1)."""
        found = {"schema": SCHEMA, "kind": "bench", **asdict(self)}
        return found if self.targets else {n: value for n, value in found.items() if n != "targets"}


def machine() -> str:
    """Returns the machine in words: processors and their instruction sets, nothing that names an owner."""
    import os

    sets = ", ".join(name for name in ("avx2", "avx512f", "amx_tile") if name in _flags())
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{count}-core {platform.machine()} CPU{f' ({sets})' if sets else ''}, {platform.system()}"


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages that a time depends on, and Python's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return {flag for line in file if line.startswith("flags") for flag in line.split()}
    except OSError:
        return set()
