"""Tries the kernel's variants on the GPU at hand and writes the best into plugins/kernels/variants.json, as measured.

    python benchmarks/tune_kernel.py [--sizes 64,128] [--dtypes bf16] [--seconds 280] [-o FILE]

All candidates are compiled beforehand, in parallel; those that do not fit or spill are left out. The others are timed
in turn as CUDA graphs, by events (export/bench/gpu_clock.py), on the shapes that `bench gpu` reports; the one with the
best geometric mean comes first, unless the present first is within twice the spread of it. Then the decode kernel, how
many programs a multiprocessor should have, and up to how many keys K is rotated inside. What the time does not reach
keeps its row and is named NOT RUN. Without a GPU: NOT RUN, exit code 3, and no file is changed.
"""

import argparse
import itertools
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel_machine import Gpu, Place, places, rotations

from export.bench.spread import ratio
from plugins.kernels import tuning
from plugins.kernels.variants import ATTENTION, DECODE, SHARED_MEMORY, Variant, variants

Rounds = Sequence[Sequence[float]]
"""Seconds of each call, by round, as `export.bench.clock.Times.wall`."""
KEPT = 4
"""Variants of a measured row: the fastest, and what to take where it does not fit another problem."""
PROGRAMS = (1, 2, 3, 4, 6)


@dataclass(frozen=True)
class Task:
    """What one measured row is about."""

    kernel: str
    dtype: str
    size: int
    places: tuple[Place, ...]

    @property
    def title(self) -> str:
        """What the printed lines call it."""
        return f"{self.kernel} {self.dtype} D{self.size}"


class Machine(Protocol):
    """What compiles and times: a GPU, or what a test puts in its place."""

    sm: int
    device: str

    def compile(self, asked: Sequence[tuple[Task, Variant]]) -> dict[tuple[Task, Variant], str]:
        """Returns what is wrong with each variant for a task, "" where nothing is."""

    def time(self, place: Place, dtype: str, options: Mapping[str, tuple[Variant, int]]) -> dict[str, Rounds]:
        """Returns the rounds of each option, by name: its variant, and programs a multiprocessor (0: not split)."""

    def time_rotation(self, place: Place, dtype: str) -> dict[str, Rounds]:
        """Returns the rounds of "inside" and "before": K rotated in the kernel, or by a compiled pass before it."""


def candidates(task: Task, sm: int) -> tuple[Variant, ...]:
    """Returns the variants to try: the present ones first, then the grid around them."""
    present = variants(task.size, task.dtype, task.kernel, sm)[:KEPT]
    if task.kernel == DECODE:
        grid = itertools.product((16,), (32, 64, 128), (2, 4, 8), (2, 3, 4))
    else:
        grid = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    item = 4 if task.dtype == "fp32" else 2
    made = [Variant(*one) for one in grid]
    if task.kernel != DECODE:
        wide = [v for v in made if v.block_m == 128 and v.block_n >= 64 and v.stages < 4]
        ways = [(True, False, False), *([(False, True, False), (True, True, False)] if sm >= 90 else [])]
        ways += [(False, True, True), (True, True, True)] if sm >= 100 else []  # on SM 90 the compiler specialises none
        made += [replace(v, peeled=a, descriptors=b, specialized=c) for v, (a, b, c) in itertools.product(wide, ways)]
    # K and V of every stage but the one in use lie in shared memory; the compiler has the last word.
    fits = (v for v in made if 2 * v.block_n * task.size * item * (v.stages - 1) < SHARED_MEMORY[sm] * 1024)
    return tuple(dict.fromkeys((*present, *fits)))


def ranked(seen: Mapping[str, Mapping[str, Rounds]], first: str) -> list[str]:
    """Returns the names by the geometric mean over all places of their time over the best there, fastest first.

    Args:
        seen: Place to name to rounds; a name that some place lacks is left out.
        first: What comes first today: it stays unless the fastest beats it by more than twice the spread.
    """
    names = [n for n in next(iter(seen.values()), {}) if all(n in times for times in seen.values())]
    middle = {p: {n: median([median(one) for one in times[n]]) for n in names} for p, times in seen.items()}
    cost = {n: sum(math.log(m[n] / min(m.values())) for m in middle.values()) / len(middle) for n in names}
    order = sorted(names, key=lambda n: cost[n])
    if first in order and order[0] != first:
        spread = max(ratio(times[order[0]], times[first]).spread for times in seen.values())
        if cost[first] - cost[order[0]] <= 2 * spread:
            order.remove(first)
            order.insert(0, first)
    return order


def crossing(seen: Mapping[int, Mapping[str, Rounds]]) -> int:
    """Returns the most keys up to which rotating inside is never slower than before, 0 where it always is."""
    most = 0
    for keys, times in sorted(seen.items()):
        if ratio(times["inside"], times["before"]).verdict == "slower":
            break
        most = keys
    return most


def tuned(
    machine: Machine, tasks: Sequence[Task], turned: Sequence[Place], now: Callable[[], float], seconds: float,
    found: tuning.Document, note: Mapping[str, Any],
) -> tuple[tuning.Document, list[str]]:  # fmt: skip
    """Returns the data with the measured rows taken in, and a line for each row: what was chosen, or NOT RUN and why.

    Args:
        machine: Compiles and times.
        tasks: Rows of `kernels`; the decode kernel's shapes also set the row of `splits`.
        turned: Places that set the row of `key_rotation`, by their numbers of keys.
        now: A clock in seconds.
        seconds: What all of it may take.
        found: The present data.
        note: Device, date and versions for the rows.
    """
    end, lines = now() + seconds, []
    measured = {**note, "sm": machine.sm, "source": tuning.MEASURED}
    choices = {task: candidates(task, machine.sm) for task in tasks}
    trouble = machine.compile([(task, variant) for task in tasks for variant in choices[task]])
    for task in tasks:
        names = {_name(v): v for v in choices[task] if not trouble.get((task, v), "")}
        usual = tuning.row("splits", machine.sm)["programs_per_sm"] if task.kernel == DECODE else 0
        seen = _timed(machine, task, {n: (v, usual) for n, v in names.items()}, lambda: now() < end)
        if len(seen) < len(task.places):
            lines.append(f"NOT RUN: {task.title}: {'the time was up' if names else 'no candidate compiles'}")
            continue
        order = ranked(seen, next(iter(names)))
        best = names[order[0]]
        row = {"kernel": task.kernel, "dtype": task.dtype, "head_size": task.size, **measured}
        row["variants"] = [names[n].as_row() for n in order[:KEPT]]
        found = tuning.with_row(found, "kernels", row)
        lines.append(f"{task.title}: {order[0]} of {len(names)} timed, {len(choices[task]) - len(names)} left out")
        if task.kernel == DECODE and now() < end:
            several = _timed(machine, task, {f"{n}": (best, n) for n in PROGRAMS}, lambda: True)
            row = {**tuning.general("splits"), **measured, "programs_per_sm": int(ranked(several, f"{usual}")[0])}
            found = tuning.with_row(found, "splits", row)
            lines.append(f"splits: {row['programs_per_sm']} programs a multiprocessor")
    if turned and now() < end:
        seen_by_keys = {p.keys: machine.time_rotation(p, tasks[0].dtype) for p in turned}
        row = {**measured, "keys": crossing(seen_by_keys)}
        found = tuning.with_row(found, "key_rotation", row)
        lines.append(f"key_rotation: inside up to {row['keys']} keys")
    else:
        lines.append("NOT RUN: key_rotation: the time was up")
    return found, lines


def _name(variant: Variant) -> str:
    more = "".join(f" {name}" for name in variant.as_row()[4:])
    return f"{variant.block_m}x{variant.block_n} w{variant.warps} s{variant.stages}{more}"


def _timed(
    machine: Machine, task: Task, options: Mapping[str, tuple[Variant, int]], go_on: Callable[[], bool]
) -> dict[str, dict[str, Rounds]]:
    """Returns the rounds of the options at each place, as far as the time goes."""
    return {p.name: machine.time(p, task.dtype, options) for p in task.places if options and go_on()}


def main(words: list[str], machine: Machine | None = None) -> int:
    """Measures and writes; 3 where there is no GPU, 2 where the words cannot be meant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="128,64", help="head sizes, of 16, 32, 64, 128, 256 (default: %(default)s)")
    parser.add_argument("--dtypes", default="bf16", help="of fp16, bf16, fp32 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=280.0, help="what it may take (default: %(default)s)")
    parser.add_argument("--out", "-o", type=Path, default=tuning.DATA, help="file to write (default: the data itself)")
    args = parser.parse_args(words)
    sizes, dtypes = [int(w) for w in args.sizes.split(",")], args.dtypes.split(",")
    if not set(sizes) <= {16, 32, 64, 128, 256} or not set(dtypes) <= {"fp16", "bf16", "fp32"}:
        parser.error("--sizes are of 16, 32, 64, 128, 256, and --dtypes of fp16, bf16, fp32")
    if machine is None:
        try:
            machine = Gpu()
        except RuntimeError as error:
            print(f"NOT RUN: {error}")
            return 3
    tasks = [
        Task(kernel, dtype, size, places(kernel, size))
        for dtype, kernel, size in itertools.product(dtypes, (ATTENTION, DECODE), sizes)
    ]
    note = {
        "device": machine.device,
        "date": date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in ("torch", "triton")},
        "command": shlex.join(["python", "benchmarks/tune_kernel.py", *words]),
    }
    found, lines = tuned(machine, tasks, rotations(), time.monotonic, args.seconds, tuning.document(), note)
    args.out.write_text(tuning.text(found), encoding="utf-8")
    print("\n".join([*lines, f"wrote {args.out}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
