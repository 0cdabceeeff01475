"""A form, a factory or an .onnx file as a workload: its exports, what the tools make of them, and PyTorch."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.providers import SLOWER_ON_CPU
from export.bench import elsewhere, graph_work, ort_contenders, tools, torch_contenders
from export.bench.contender import EXPORT, OURS, PEER, Contender, Outputs
from export.bench.exports import ROUTES
from export.bench.workload import Recorded, Work, Workload
from export.errors import CaptureError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from export.bench.run import Asked
    from export.capture.contract import Source
    from export.parity import ParityReport

    Arrays = Mapping[str, "np.ndarray"]


DRAWS = 3
"""Moved runs of PyTorch that a budget is taken over."""


def workloads(asked: "Asked", folder: Path) -> "Iterator[Workload]":
    """Yields the one workload of a form, a factory or a file.

    Raises:
        UsageError: The source does not load, or has no such sizes.
    """
    yield _of_file(asked, folder) if asked.source.endswith(".onnx") else _of_module(asked, folder)


def _of_module(asked: "Asked", folder: Path) -> Workload:
    import torch

    from export import capture
    from export.model.form import Case
    from export.parity import arrays

    source = capture.load_source(asked.source, seed=asked.seed)
    sizes = {**source.sizes(), **{n: opt for n, (_, opt, _) in source.dims.items() if n.isidentifier()}, **asked.sizes}
    inputs = source.draw(Case("bench", sizes, seed=asked.seed))
    feeds = arrays.feeds(inputs)
    failed: dict[str, CaptureError] = {}

    def file(route: str) -> Path:
        exporter, opset = ROUTES[route]
        path = folder / f"model.{route}.onnx"
        if route in failed:
            raise failed[route]
        if not path.exists():
            try:
                tools.written(capture.capture(source, dtype="fp32", exporter=exporter, opset=opset).model, path)
            except CaptureError as error:
                failed[route] = error
                raise
        return path

    norms = any(isinstance(one, torch.nn.LayerNorm) for one in source.module.modules())
    contenders = [c for r in asked.routes for c in stages(lambda r=r: file(r), folder, feeds, asked, r, norms=norms)]  # type: ignore[misc]
    contenders.append(torch_contenders.eager(source.module, inputs))

    def judge(answers: Mapping[str, Outputs]) -> "ParityReport":
        from export.parity import check_stages

        recorded = {name: Recorded(outputs) for name, outputs in answers.items()}
        return check_stages(source, None, recorded, dtype="fp32", cases=[inputs], draws=DRAWS)

    return Workload(
        name=source.name,
        sizes=sizes,
        dtype="fp32",
        contenders=(*contenders, *elsewhere.contenders()),
        work=_module_work(source, inputs),
        judge=judge,
        items=("calls", 1),
    )


def _of_file(asked: "Asked", folder: Path) -> Workload:
    from engines.feeds import resolve_dims
    from engines.runner import TensorSpec
    from export import model_file
    from export.onnx_subject import OnnxSubject, dtype_of

    path = Path(asked.source)
    model = model_file.load(path)
    dtype = dtype_of(model)
    if dtype == "bf16":
        raise UsageError(f"{path} computes in bfloat16, for which ONNX Runtime's CPU provider has too few kernels.")
    subject = OnnxSubject(path, dtype, asked.seed)
    exported = subject.exported()
    sizes = resolve_dims([TensorSpec(t.name, t.dtype, t.shape) for t in exported.inputs], asked.sizes)
    feeds = subject.draw(exported, sizes)

    norms = any(node.op_type == "LayerNormalization" for node in model.graph)

    def judge(answers: Mapping[str, Outputs]) -> "ParityReport":
        profile = {name: (size, size, size) for name, size in sizes.items()}
        return subject.judge(exported, {n: Recorded(o) for n, o in answers.items()}, profile, "keep")

    return Workload(
        name=path.name,
        sizes=sizes,
        dtype=dtype,
        contenders=(
            *stages(lambda: path, folder, feeds, asked, "", norms=norms),
            *elsewhere.contenders(asked.device),
        ),
        work=graph_work.work(model, {name: array.shape for name, array in feeds.items()}),
        judge=judge,
        items=("calls", 1),
    )


def stages(
    file: Callable[[], Path], folder: Path, feeds: "Arrays", asked: "Asked", route: str, *, norms: bool
) -> list[Contender]:
    """Returns a file as exported, our stages of it, and what the tools make of it; each is made once.

    Args:
        file: The file; a ToolkitError of it says why all of them are NOT RUN.
        folder: Where what is made of it goes.
        feeds: Inputs by name.
        asked: Threads, and whether fusing is verified.
        route: Which export it is, or "".
        norms: Whether it has a LayerNormalization, so that what ONNX Runtime makes of that is timed as well.
    """

    def one(
        name: str, kind: str, make: Callable[[Path, Path], Path], stage: str = "", without: tuple[str, ...] = ()
    ) -> Contender:
        def model() -> Path:
            return make(file(), folder / f"{route or 'file'}.{name.replace(' ', '-').replace(',', '')}.onnx")

        return ort_contenders.contender(
            name, kind, model, feeds, asked.threads, route=route, stage=stage, without=without, provider=asked.device
        )

    def plain(path: Path, out: Path) -> Path:
        return path

    @functools.cache
    def lowered(path: Path, out: Path) -> Path:
        return tools.lowered(path, out, verify=asked.verify)

    off = SLOWER_ON_CPU if norms and asked.device == "cpu" else ()
    return [
        one("as exported", EXPORT, plain, "exported"),
        *(one(f"as exported, no {name}", EXPORT, plain, "set", (name,)) for name in off),
        one("fused, not lowered", OURS, lambda path, out: tools.fused(path, out, verify=asked.verify), "fused"),
        one("attnproof", OURS, lowered, "lowered"),
        *(one(f"attnproof, no {name}", OURS, lowered, "set", (name,)) for name in off),
        *(one(name, PEER, lambda path, out, tool=tool: tool(path, out, 0, 0)) for name, tool in tools.PEERS.items()),  # type: ignore[misc]
    ]


def _module_work(source: "Source", inputs: Mapping[str, Any]) -> Work:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export.parity import arrays

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        outputs = arrays.outputs(source.module(**inputs))
    held = [*source.module.parameters(), *source.module.buffers()]
    traffic = sum(x.numel() * x.element_size() for x in held)
    traffic += sum(array.nbytes for array in (*arrays.feeds(inputs).values(), *outputs.values()))
    flops = int(counter.get_total_flops())
    how = "products and convolutions by torch.utils.flop_counter; weights and inputs read, outputs written once"
    return Work(flops or None, traffic, how)
