"""A whole bench on a GPU: PyTorch's backends, flex_attention, the plugin's kernel. NOT RUN so far: it needs a GPU."""

import itertools
import logging
from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from engines.errors import BackendMissingError
from engines.gpus import gpus
from export.bench import cases, gpu_clock, torch_contenders
from export.bench.ceilings import Ceilings
from export.bench.contender import OURS, Contender, Opened, not_here
from export.bench.measure import summed_up
from export.bench.result import Case, Result
from export.bench.shapes import Shape
from export.bench.truth import judged
from export.bench.workload import Work, Workload

if TYPE_CHECKING:
    import torch

    from export.bench.run import Asked

_log = logging.getLogger(__name__)
DTYPE = "bf16"
SIDE, COPIED = 8192, 2**30


def require() -> str:
    """Returns the GPU's name.

    Raises:
        BackendMissingError: There is none, or PyTorch cannot use it.
    """
    import torch

    seen = gpus()
    if not seen.found:
        raise BackendMissingError(f"--device cuda needs an NVIDIA GPU: {seen.reason}. Leave it out to time the CPU.")
    if not torch.cuda.is_available():
        raise BackendMissingError("--device cuda needs a PyTorch built for CUDA; this one is not. Install one.")
    return seen.found[0].name


def run(asked: "Asked", shapes: tuple[Shape, ...]) -> Result:
    """Returns what was found out about shapes on the first GPU, in bfloat16."""
    name = require()
    top = _ceilings()
    made = tuple(_case(shape, top, asked) for shape in shapes)
    pinning = f"{name}, CUDA graphs of {gpu_clock.CALLS} calls timed by events"
    return Result(
        command=asked.command,
        date=date.today().isoformat(),
        seed=asked.seed,
        device="cuda",
        threads=asked.threads,
        pinning=pinning,
        seconds=asked.seconds,
        ceilings=top,
        cases=made,
    )


def _case(shape: Shape, top: Ceilings, asked: "Asked") -> Case:
    _log.info("case      %s", shape.name)
    sets = [_inputs(shape, asked.seed + i) for i in range(gpu_clock.sets_needed(shape.bytes(2)))]
    contenders = (
        *(_rotating(sets, lambda x, i=i: torch_contenders.sdpa(shape, x)[i]) for i in range(4)),  # type: ignore[misc]
        _rotating(sets[:1], lambda x: torch_contenders.flex(shape, x)),
        _rotating(sets, lambda x: _plugin(shape, x)),
        *(not_here(n, k, "It is not timed by CUDA graphs yet.") for n, k in (("ONNX Runtime CUDA", OURS),)),
    )
    pairs = cases.kept_pairs(shape, sets[0])
    work = Work(shape.flops(pairs), shape.bytes(2), "useful pairs only; Q, K, V and the output once each")
    workload = Workload(
        name=shape.name,
        sizes={"batch": shape.batch, "queries": shape.queries, "heads": shape.heads, "head_size": shape.size},
        dtype=DTYPE,
        contenders=contenders,
        work=work,
        judge=lambda answers: judged(shape, {n: x.cpu() for n, x in sets[0].items()}, answers, DTYPE),
        items=("tokens", shape.batch * shape.queries),
    )
    return summed_up(workload, top, lambda opened: gpu_clock.interleaved({n: o.call for n, o in opened.items()}))


def _inputs(shape: Shape, seed: int) -> "dict[str, torch.Tensor]":
    import torch

    drawn = cases.draw(shape, seed)
    return {n: x.to("cuda", torch.bfloat16 if x.is_floating_point() else x.dtype) for n, x in drawn.items()}


def _rotating(sets: list[Any], make: Callable[[Any], Contender]) -> Contender:
    """Returns a contender that takes the next set of inputs with each call; its answer is that of the first set."""
    first = make(sets[0])

    def open_() -> Opened:
        opened = [make(one).open() for one in sets]
        turns = itertools.cycle(opened)
        return Opened(lambda: next(turns).call(), opened[0].outputs)

    return Contender(first.name, first.kind, open_)


def _plugin(shape: Shape, inputs: "Mapping[str, torch.Tensor]") -> Contender:
    """Returns the plugin's kernel through PyTorch, RoPE inside where there is any."""

    def open_() -> Opened:
        import torch

        from plugins.torch_operator import rotary_attention

        keep = cases.keep(shape, inputs)
        lengths = None if keep is None else keep.sum(-1).to(torch.int32)
        rotary = cases.half_tables(shape, inputs["query"].device) if shape.family == "causal" else None

        def call() -> Any:
            q, k, v = cases.split(shape, dict(inputs))
            kind = 1 if shape.family == "causal" else 0
            return cases.merge(rotary_attention(q, k, v, rotary=rotary, lengths=lengths, causal_kind=kind))

        return torch_contenders.opened(call, ("output",))

    return Contender("attnproof plugin kernel", OURS, open_, stage="lowered")


def _ceilings() -> Ceilings:
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(COPIED // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    times = gpu_clock.interleaved({"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)})
    product, copy = (min(min(one) for one in times[name].wall) for name in ("product", "copy"))
    return Ceilings(2 * SIDE**3 / product, 2 * COPIED / copy)
