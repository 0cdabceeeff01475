"""A whole bench on a GPU: PyTorch's backends, flex_attention, the plugin's kernel. NOT RUN so far: it needs a GPU."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BackendMissingError
from engines.gpus import gpus
from export.bench import gpu_cases, gpu_clock, gpu_targets, gpu_truth, model_workload
from export.bench.ceilings import Ceilings
from export.bench.measure import measured, summed_up
from export.bench.result import Case, Result
from export.bench.shapes import Shape
from export.bench.workload import Work, Workload

if TYPE_CHECKING:
    from export.bench.run import Asked

_log = logging.getLogger(__name__)
DEVICE, DTYPE = "cuda", "bf16"
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
    return asked.result(pinning, top, made, gpu_targets.targets(tuple(zip(shapes, made, strict=True)), top))


def run_file(asked: "Asked") -> Result:
    """Returns what was found out about an .onnx file on ONNX Runtime's CUDA provider: before fusing, after it, by tool.

    Inputs and outputs stay on the GPU and a call ends when it is done, by the wall clock; the ceilings are bfloat16's.

    Raises:
        BackendMissingError: There is no GPU, or PyTorch cannot use it.
        UsageError: The file cannot be read, or its sizes cannot be meant.
    """
    name = require()
    top = _ceilings()
    with tempfile.TemporaryDirectory(prefix="attnproof-bench-") as folder:
        (workload,) = model_workload.workloads(asked, Path(folder))
        case = measured(workload, top, asked.seconds)
    pinning = f"{name}, ONNX Runtime's CUDA provider, inputs and outputs on the device, wall clock"
    return asked.result(pinning, top, (case,))


def _case(shape: Shape, top: Ceilings, asked: "Asked") -> Case:
    import torch

    _log.info("case      %s", shape.name)
    torch.compiler.reset()  # else what is compiled for a dozen shapes falls back to eager without a word
    torch.cuda.empty_cache()
    number = gpu_clock.sets_needed(shape.bytes(2))
    sets = [gpu_cases.draw(shape, asked.seed + i, DEVICE) for i in range(number)]
    work = Work(
        shape.flops(gpu_cases.kept_pairs(shape, sets[0])),
        shape.bytes(2),
        "useful pairs of the first set only; Q, K, V and the output once each",
    )
    workload = Workload(
        name=shape.name,
        sizes=shape.sizes,
        dtype=DTYPE,
        contenders=gpu_cases.contenders(shape, sets, asked.flex),
        work=work,
        judge=lambda answers: gpu_truth.judged(shape, sets[0], answers, DTYPE),
        items=("tokens", shape.batch * shape.queries),
    )
    return summed_up(workload, top, lambda opened: gpu_clock.interleaved({n: o.call for n, o in opened.items()}))


def _ceilings() -> Ceilings:
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(COPIED // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    times = gpu_clock.interleaved({"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)})
    product, copy = (min(min(one) for one in times[name].wall) for name in ("product", "copy"))
    return Ceilings(2 * SIDE**3 / product, 2 * COPIED / copy)
