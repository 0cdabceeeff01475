"""A whole bench: what was named becomes workloads, the ceilings are measured, and each workload is timed."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from export.bench import ceilings, settings
from export.bench.clock import pinned
from export.bench.result import Case, Result
from export.bench.shapes import SETS, Shape
from export.bench.workload import Workload
from export.errors import UsageError

if TYPE_CHECKING:
    from export.bench.gpu_targets import Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a bench is asked to do.

    Attributes:
        source: A shape set, a form, a factory or an .onnx file.
        command: The command line, for the record.
        routes: Exports to measure, keys of `exports.ROUTES`.
        sizes: Sizes of symbolic dimensions of a form, factory or file.
        threads: Threads of every contender.
        seconds: About how long each case is timed.
        seed: Of all inputs.
        verify: Whether our own fusing runs each attention before and after.
        flex: Whether flex_attention is compiled for each shape.
        device: "cpu" or "cuda".
        only: Words one of which the name of a case must hold; empty for all.
    """

    source: str
    command: str
    routes: tuple[str, ...]
    sizes: dict[str, int]
    threads: int
    seconds: float
    seed: int
    verify: bool
    flex: bool
    only: tuple[str, ...] = ()
    device: str = "cpu"

    def result(
        self, pinning: str, top: ceilings.Ceilings, cases: tuple[Case, ...], targets: "tuple[Target, ...]" = ()
    ) -> Result:
        """Returns what was found out about what was asked, today.

        Args:
            pinning: What was computed on, and how it was timed.
            top: The machine's ceilings.
            cases: What was measured.
            targets: What such a run should reach.
        """
        return Result(
            command=self.command,
            date=date.today().isoformat(),
            seed=self.seed,
            device=self.device,
            threads=self.threads,
            pinning=pinning,
            seconds=self.seconds,
            ceilings=top,
            cases=cases,
            targets=targets,
        )


def run(asked: Asked) -> Result:
    """Returns what was found out.

    Raises:
        UsageError: There is no such source, or its sizes cannot be meant.
        BackendMissingError: A GPU was asked for, and none is here.
    """
    shapes = _chosen(asked)
    if asked.device == "cuda":
        from export.bench import gpu_run

        if not shapes and not asked.source.endswith(".onnx"):
            raise UsageError(
                f"--device cuda times a shape set ({', '.join(SETS)}) or an .onnx file, and {asked.source} is neither: "
                "build it, and name the model.onnx of its folder."
            )
        return gpu_run.run(asked, shapes) if shapes else gpu_run.run_file(asked)
    in_time = settings.sleep_while_waiting(asked.threads)
    with pinned(asked.threads) as how, tempfile.TemporaryDirectory(prefix="attnproof-bench-") as folder:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(asked.threads)
        _log.info("ceilings  a matrix product and a copy on %d threads", asked.threads)
        top = ceilings.measured(asked.threads)
        cases = tuple(_measured(w, top, asked.seconds) for w in _workloads(asked, shapes, Path(folder)))
        torch.set_num_threads(before)
    late = "" if in_time else " (but PyTorch was imported before, and its threads may spin)"
    return asked.result(how + late, top, cases)


def _measured(workload: Workload, top: ceilings.Ceilings, seconds: float) -> Case:
    from export.bench.measure import measured

    _log.info("case      %s", workload.name)
    return measured(workload, top, seconds)


def _chosen(asked: Asked) -> tuple[Shape, ...]:
    """Returns the shapes of the set that was named; none where the source is not a set."""
    if asked.source not in SETS:
        if asked.only:
            raise UsageError(f"--only chooses from a shape set ({', '.join(SETS)}), and {asked.source} is none.")
        return ()
    found = tuple(s for s in SETS[asked.source] if not asked.only or any(word in s.name for word in asked.only))
    if not found:
        names = ", ".join(s.name for s in SETS[asked.source])
        raise UsageError(f"--only {','.join(asked.only)} leaves no case of {asked.source}; it has {names}.")
    return found


def _workloads(asked: Asked, shapes: tuple[Shape, ...], folder: Path) -> Iterator[Workload]:
    """Yields one workload after another, so that only one holds memory."""
    if shapes:
        from export.bench.shape_workload import Files, workload

        files = Files(folder, verify=asked.verify)
        for shape in shapes:
            yield workload(shape, files, routes=asked.routes, threads=asked.threads, seed=asked.seed, flex=asked.flex)
        return
    from export.bench import model_workload

    yield from model_workload.workloads(asked, folder)
