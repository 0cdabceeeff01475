"""What a GPU run should reach, each target a row: met, lost, or NOT RUN with the reason."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from export.bench import gpu_cases
from export.bench.ceilings import Ceilings
from export.bench.result import NOT_RUN, TIMED, Case, Row
from export.bench.shapes import Shape

MET, LOST = "met", "lost"
OURS = (gpu_cases.INSIDE, gpu_cases.BEFORE, gpu_cases.KERNEL)
CUDNN = ("torch SDPA CUDNN", gpu_cases.SEPARATE.format("CUDNN"))
SHORT, LONG, LONG_CACHE = 1024, 2048, 32768
OF_CUDNN, OF_USEFUL, OF_COPY, OF_ORT = 0.75, 1.15, 0.8, 1.5


@dataclass(frozen=True)
class Target:
    """One target at one case.

    Attributes:
        name: What is asked for.
        case: Of which case; "" where it belongs to none of the run.
        status: "met", "lost", or "NOT RUN".
        value: What was found; None where it was not run.
        spread: How far the value may be trusted, relative.
        bound: What the value is held against.
        reason: Which two were compared, or why it was not run.
    """

    name: str
    case: str
    status: str
    value: float | None
    spread: float | None
    bound: float
    reason: str


def targets(cases: Sequence[tuple[Shape, Case]], top: Ceilings) -> tuple[Target, ...]:
    """Returns every target at every case it is about."""
    found = []
    for shape, case in cases:
        rotated = shape.family in ("full", "causal")
        if rotated and shape.queries <= SHORT:
            peers = [r.name for r in case.rows if r.kind == "pytorch" and ("SDPA" in r.name)]
            name = "RoPE and attention in one kernel beat a separate RoPE and the best SDPA"
            found.append(_compared(name, case, (gpu_cases.INSIDE,), peers, 1.0, lambda v, s: v - 1 > 2 * s))
        if rotated and shape.size == 128 and shape.queries >= LONG:
            name = f"at least {OF_CUDNN} of cuDNN's speed"
            found.append(_compared(name, case, OURS, CUDNN, OF_CUDNN, lambda v, _: v >= OF_CUDNN))
        if shape.family == "lengths":
            found.append(_padding(shape, case))
        if shape.family == "decode" and shape.key_count >= LONG_CACHE:
            found.append(_decode(case, top))
    ort = "It is a target of whole models: python -m export bench MODEL.onnx --device cuda."
    found.append(Target("ONNX Runtime CUDA after fusing, over before", "", NOT_RUN, None, None, OF_ORT, ort))
    return tuple(found)


def _compared(
    name: str, case: Case, ours: Iterable[str], theirs: Iterable[str], bound: float,
    met: Callable[[float, float], bool],
) -> Target:  # fmt: skip
    """Returns whether our fastest is fast enough beside the fastest of theirs: time of theirs over ours."""
    mine, best = _fastest(case, ours), _fastest(case, theirs)
    if mine is None or best is None:
        missing = "our kernel" if mine is None else "the peer"
        return Target(
            name, case.name, NOT_RUN, None, None, bound, f"{missing.capitalize()} was not timed, or is wrong."
        )
    value, spread = _p50(best) / _p50(mine), _spread(mine, best)
    status = MET if met(value, spread) else LOST
    equal = ", equal within twice the spread" if abs(value - 1) <= 2 * spread else ""
    return Target(name, case.name, status, value, spread, bound, f"{mine.name} beside {best.name}{equal}")


def _padding(shape: Shape, case: Case) -> Target:
    """Returns whether the padded call takes no more than its share of useful work, within 15%."""
    name = "time of padded keys in proportion to useful FLOPs"
    padded, whole = _fastest(case, (gpu_cases.KERNEL,)), _fastest(case, (gpu_cases.UNPADDED,))
    if padded is None or whole is None or case.flops is None:
        why = "The kernel was not timed with padding and without, or is wrong."
        return Target(name, case.name, NOT_RUN, None, None, OF_USEFUL, why)
    share = case.flops / shape.flops()
    value = _p50(padded) / _p50(whole) / share
    why = f"{share:.0%} of the pairs are useful"
    return Target(name, case.name, MET if value <= OF_USEFUL else LOST, value, _spread(padded, whole), OF_USEFUL, why)


def _decode(case: Case, top: Ceilings) -> Target:
    name, row = "decode reads the cache at the copy's bandwidth", _fastest(case, (gpu_cases.KERNEL,))
    if row is None:
        return Target(name, case.name, NOT_RUN, None, None, OF_COPY, "The kernel was not timed, or is wrong.")
    value = case.bytes / (_p50(row) / 1000) / top.bytes_per_second
    why = f"{case.bytes / _p50(row) / 1e6:.0f} GB/s of {top.bytes_per_second / 1e9:.0f} measured"
    return Target(name, case.name, MET if value >= OF_COPY else LOST, value, _spread(row, row), OF_COPY, why)


def _fastest(case: Case, names: Iterable[str]) -> Row | None:
    wanted = set(names)
    rows = [r for r in case.rows if r.name in wanted and r.status == TIMED and r.timing is not None]
    return min(rows, key=_p50, default=None)


def _p50(row: Row) -> float:
    return row.timing.p50_ms if row.timing else float("inf")


def _spread(one: Row, two: Row) -> float:
    return max(row.timing.spread if row.timing else 0.0 for row in (one, two))
