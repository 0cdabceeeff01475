"""Opens the contenders of a workload, checks every answer, times them in turn, and says what came of it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from export.bench import memory
from export.bench.ceilings import Ceilings
from export.bench.clock import Times, interleaved
from export.bench.contender import EXPORT, OURS, TORCH, Contender, Opened, Unavailable
from export.bench.result import NOT_RUN, TIMED, WRONG, Case, Row
from export.bench.shapes import floor_seconds
from export.bench.spread import Ratio, ratio, timing
from export.bench.workload import Workload, key

_log = logging.getLogger(__name__)
SITTINGS = 3
"""How often sessions are opened anew: where their memory comes to lie makes a difference that lasts as long as they do
(one and the same graph, opened six times: up to 10%), so that one opening says nothing about a few percent."""


def measured(workload: Workload, ceilings: Ceilings, seconds: float) -> Case:
    """Returns everything about one workload on the CPU.

    Args:
        workload: What to measure.
        ceilings: The machine's.
        seconds: About how long its contenders are timed, all together.
    """

    def timed(opened: Mapping[str, Opened]) -> dict[str, Times]:
        times: dict[str, Times] = {}
        for sitting in range(SITTINGS):
            now = {**opened, **_opened_anew(workload.contenders, opened)} if sitting else opened
            for name, more in interleaved({n: one.call for n, one in now.items()}, seconds / SITTINGS).items():
                times.setdefault(name, Times()).extend(more)
        return times

    return summed_up(workload, ceilings, timed)


def summed_up(
    workload: Workload, ceilings: Ceilings, timed: Callable[[Mapping[str, Opened]], dict[str, Times]]
) -> Case:
    """Returns everything about one workload: its contenders opened, judged, timed, and what that comes to.

    Args:
        workload: What to measure.
        ceilings: The machine's.
        timed: Times those that could be opened, by their keys.
    """
    rows: dict[str, Row] = {}
    opened: dict[str, Opened] = {}
    for contender in workload.contenders:
        name = key(contender)
        row = Row(contender.name, contender.kind, contender.route, contender.stage)
        try:
            contender.prepare()
            opened[name], taken = memory.peak(contender.open)
            rows[name] = replace(row, memory_bytes=taken)
        except Unavailable as error:
            rows[name] = replace(row, status=NOT_RUN, reason=str(error))
    rows |= _judged(workload, rows, opened)
    times = timed(opened) if opened else {}
    for name in set(opened) - set(times):
        rows[name] = replace(rows[name], status=NOT_RUN, reason="It could not be timed; the log says why.")
    work, (item, count) = workload.work, workload.items
    floor = None
    if work.flops is not None:
        floor = floor_seconds(work.flops, work.bytes, ceilings.flops_per_second, ceilings.bytes_per_second)
    baseline = next((n for c in workload.contenders if c.kind == EXPORT and (n := key(c)) in times), "")
    for name, seen in times.items():
        clock = timing(seen.wall, seen.cpu or None)
        rows[name] = replace(
            rows[name],
            timing=clock,
            speedup=ratio(seen.wall, times[baseline].wall) if baseline else None,
            ours=_ours(workload.contenders, rows[name], seen, times),
            gflops=None if work.flops is None else work.flops / clock.p50_ms / 1e6,
            of_floor=None if floor is None else 1000 * floor / clock.p50_ms,
            items_per_second=count * clock.per_second,
        )
    return Case(
        name=workload.name,
        sizes=dict(workload.sizes),
        dtype=workload.dtype,
        baseline=baseline,
        item=item,
        flops=work.flops,
        bytes=work.bytes,
        counted=work.how,
        floor_ms=None if floor is None else 1000 * floor,
        rows=tuple(rows.values()),
    )


def _opened_anew(contenders: tuple[Contender, ...], opened: Mapping[str, Opened]) -> dict[str, Opened]:
    return {key(c): c.open() for c in contenders if key(c) in opened and c.kind != TORCH}


def _judged(workload: Workload, rows: Mapping[str, Row], opened: Mapping[str, Opened]) -> dict[str, Row]:
    """Returns the rows with what became of their answers; PyTorch's own error is the yardstick of them all."""
    from export.parity.result import FAIL

    if not opened:
        return {}
    report = workload.judge({name: one.outputs() for name, one in opened.items()})
    found = {}
    for judged in report.rows:
        if judged.stage in opened:
            wrong = judged.status == FAIL
            found[judged.stage] = replace(
                rows[judged.stage],
                status=WRONG if wrong else TIMED,
                reason=judged.reason if wrong else "",
                error=judged.max_error,
                budget_used=judged.ratio,
            )
    return found


def _ours(contenders: tuple[Contender, ...], row: Row, found: Times, times: Mapping[str, Times]) -> Ratio | None:
    """Returns how many times as fast as a row our lowered graph is: that of the same export, or the slowest."""
    lowered = [c for c in contenders if c.kind == OURS and c.stage == "lowered" and key(c) in times]
    mine = [c for c in lowered if c.route == row.route] or lowered
    ratios = [ratio(times[key(c)].wall, found.wall) for c in mine]
    return min(ratios, key=lambda r: r.value, default=None)
