"""The GPU that tune_kernel.py measures on, and the places it measures at: the shapes that `bench gpu` reports."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from engines.gpus import gpus
from plugins.contract import LOWER_RIGHT, UPPER_LEFT, Settings
from plugins.kernels import splits
from plugins.kernels.variants import DECODE, Variant

if TYPE_CHECKING:
    import torch
    from tune_kernel import Rounds, Task

REPLAYS = 9
"""Of each graph: enough to rank candidates; `bench gpu` says how fast the chosen one is."""


@dataclass(frozen=True)
class Place:
    """One call to time: sizes, whether causal, and whether K is rotated inside (RoPE on Q always is)."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    size: int
    causal: int
    rotate_key: int

    @property
    def name(self) -> str:
        """As the times call it."""
        return f"B{self.batch} S{self.queries} T{self.keys} H{self.heads}/{self.kv_heads} D{self.size} c{self.causal}"

    @property
    def settings(self) -> Settings:
        """The operator's attributes."""
        turned = {"rotary_embedding_dim": self.size, "rotate_key": self.rotate_key}
        return Settings(self.size**-0.5, causal_kind=self.causal, **turned)


def places(kernel: str, size: int) -> tuple[Place, ...]:
    """Returns where a kernel is timed for a head size: 16 heads of 64, 32 of 128, others so that H * D is 2048."""
    heads = {64: 16, 128: 32}.get(size, max(2048 // size, 4))
    if kernel == DECODE:
        cells = ((1, 2048), (1, 65536), (8, 8192), (32, 32768))
        return tuple(Place(b, 1, t, 32, 8, size, LOWER_RIGHT, 0) for b, t in cells)
    cells = ((16, 512), (4, 2048), (1, 8192))
    return tuple(Place(b, s, s, heads, heads, size, c, int(s <= 512)) for b, s in cells for c in (0, UPPER_LEFT))


def rotations() -> tuple[Place, ...]:
    """Returns where rotating K inside and before are compared: grouped heads, which rotate the most inside."""
    return tuple(Place(max(8192 // s, 1), s, s, 32, 8, 128, UPPER_LEFT, 1) for s in (128, 256, 512, 1024, 2048, 4096))


def tensors(place: Place, dtype: str, device: str, seed: int) -> "dict[str, torch.Tensor]":
    """Returns normal inputs of a call of the operator, and the tables of RoPE."""
    import torch

    kind = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    made = torch.Generator(device).manual_seed(seed)
    half = torch.arange(place.size // 2, device=device) / (place.size // 2)
    angles = torch.arange(float(place.keys), device=device)[:, None] * 10000.0**-half
    q = (place.batch, place.heads, place.queries, place.size)
    kv = (place.batch, place.kv_heads, place.keys, place.size)
    drawn = {n: torch.randn(s, generator=made, device=device, dtype=kind) for n, s in (("q", q), ("k", kv), ("v", kv))}
    unread = {"bias": torch.zeros(1, 1, 1, 1, device=device, dtype=kind)}
    unread["lengths"] = torch.zeros(1, device=device, dtype=torch.int32)
    return {**drawn, "cos": angles.cos(), "sin": angles.sin(), **unread}


def trouble(task: "Task", variant: Variant, sm: int, device: str) -> str:
    """Returns why a variant is left out, "" where it is not; compiles it for this GPU too, into Triton's cache."""
    from plugins.kernels.arguments import Problem
    from plugins.kernels.compile import compile_variant, misfit, unsuited
    from plugins.kernels.launch import launch

    for settings in dict.fromkeys(place.settings for place in task.places):
        like = next(place for place in task.places if place.settings == settings)
        try:
            problem = Problem(settings, like.heads, like.kv_heads, task.size, task.size, task.dtype)
            wrong = unsuited(problem, variant, scratch=True)
            if sm and not wrong:
                wrong = misfit(compile_variant(problem, variant, sm, task.kernel), scratch=True)
            if wrong:
                return wrong
            # Sizes of the same divisibility as at the places, which is what Triton compiles for.
            small = replace(like, batch=1, queries=min(like.queries, 16), keys=64)
            found = tensors(small, task.dtype, device, 0)
            launch(settings, found, tuple(found["q"].shape), variant, splits=2 if task.kernel == DECODE else 0)
        except Exception as error:  # Triton's, its assembler's and the driver's errors have no common base
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


class Gpu:
    """The first NVIDIA GPU.

    Raises:
        RuntimeError: There is none, or PyTorch cannot use it; the sentence says so.
    """

    def __init__(self) -> None:
        import torch

        seen = gpus()
        if not seen.found:
            raise RuntimeError(f"it needs an NVIDIA GPU: {seen.reason}")
        if not torch.cuda.is_available():
            raise RuntimeError("it needs a PyTorch built for CUDA, and this one is not")
        from export.bench import gpu_clock

        self.where, self.sm, self.device = "cuda", seen.found[0].sm, seen.found[0].name
        self.processors: int = torch.cuda.get_device_properties(0).multi_processor_count
        self.workers = os.cpu_count() or 1
        self._clock: Callable[[Mapping[str, Callable[[], Any]]], Any] = lambda c: gpu_clock.interleaved(c, REPLAYS)

    def compile(self, asked: "Sequence[tuple[Task, Variant]]") -> "dict[tuple[Task, Variant], str]":
        """Returns what is wrong with each, compiled in processes of their own."""
        with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) as pool:
            waiting = {one: pool.submit(trouble, *one, self.sm, self.where) for one in asked}
            return {one: future.result() for one, future in waiting.items()}

    def time(self, place: Place, dtype: str, options: Mapping[str, tuple[Variant, int]]) -> "dict[str, Rounds]":
        """Returns the rounds of each option."""
        from plugins.kernels.launch import launch

        sets = self._sets(place, dtype)
        shape = (place.batch, place.heads, place.queries, place.size)

        def call(variant: Variant, programs: int) -> Callable[[], Any]:
            turns, number = itertools.cycle(sets), self._splits(place, programs)
            return lambda: launch(place.settings, next(turns), shape, variant, splits=number)

        return {n: t.wall for n, t in self._clock({n: call(*o) for n, o in options.items()}).items()}

    def time_rotation(self, place: Place, dtype: str) -> "dict[str, Rounds]":
        """Returns the rounds of "inside" and "before"."""
        import torch

        from plugins.eager import rotated
        from plugins.kernels.launch import launch

        sets, shape = self._sets(place, dtype), (place.batch, place.heads, place.queries, place.size)
        apart = replace(place, rotate_key=0)
        at = torch.arange(place.keys, device=self.where)[None]
        turn = torch.compile(rotated, dynamic=False, disable=self.where == "cpu")

        def before(x: "dict[str, torch.Tensor]") -> Any:
            k = turn(x["k"], at, x["cos"], x["sin"], place.settings)
            return launch(apart.settings, {**x, "k": k}, shape)

        one, two = itertools.cycle(sets), itertools.cycle(sets)
        calls = {"inside": lambda: launch(place.settings, next(one), shape), "before": lambda: before(next(two))}
        return {n: t.wall for n, t in self._clock(calls).items()}

    def _sets(self, place: Place, dtype: str) -> "list[dict[str, torch.Tensor]]":
        from export.bench import gpu_clock

        item = 4 if dtype == "fp32" else 2
        each = 2 * place.batch * place.size * (place.heads * place.queries + place.kv_heads * place.keys) * item
        return [tensors(place, dtype, self.where, seed) for seed in range(gpu_clock.sets_needed(each))]

    def _splits(self, place: Place, programs: int) -> int:
        if not programs:
            return 0
        share, planes = place.heads // place.kv_heads, place.batch * place.kv_heads
        rule = replace(splits.rule(self.sm), programs_per_sm=programs)
        return max(1, splits.splits(place.queries, share, planes, place.keys, self.processors, 16, rule))
