"""Exports spellings with torch's exporters, every length and the batch symbolic: one alone, or many as one module."""

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import onnx_ir as ir
import torch
from spelling import HEADS, D, Spelling
from torch import Tensor, nn

SIZES = {"B": 2, "S": 5, "T": 7}

SHAPES = {
    "q": ("B", HEADS, "S", D), "k": ("B", HEADS, "T", D), "v": ("B", HEADS, "T", D), "m": ("B", 1, "S", "T"),
    "f": ("B", 1, "S", "T"), "x": ("B", "S", HEADS * D), "pad": ("B", "S"), "kpad": ("B", "T"),
    "gk": ("B", 2, "T", D), "gv": ("B", 2, "T", D),
}  # fmt: skip
BOOLEAN = {"m", "pad", "kpad"}
POSITIONS = {"p": ("B", "S")}


class Many(nn.Module):
    """All spellings side by side, each on inputs a little different, so that no exporter merges their products."""

    def __init__(self, spellings: Sequence[Spelling]) -> None:
        super().__init__()
        self.spellings = spellings
        self.made = nn.ModuleList(s.module() for s in spellings)

    def forward(self, q, k, v, m, f, x, pad, kpad, gk, gv) -> tuple[Tensor, ...]:
        given = {"q": q, "k": k, "v": v, "m": m, "f": f, "x": x, "pad": pad, "kpad": kpad, "gk": gk, "gv": gv}
        results: list[Tensor] = []
        for at, (spelling, module) in enumerate(zip(self.spellings, self.made, strict=True)):
            taken = [given[name] + 0.01 * at if name in "qx" else given[name] for name in arguments(spelling)]
            result = module(*(t.half() if spelling.half and t.is_floating_point() else t for t in taken))
            results.append(result[0] if isinstance(result, tuple) else result)
        return tuple(results)


def arguments(spelling: Spelling) -> list[str]:
    return list(inspect.signature(spelling.module().forward).parameters)


def draw(names: Sequence[str], sizes: dict[str, int], *, half: bool = False, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in names:
        shape = [sizes[d] if isinstance(d, str) else d for d in {**SHAPES, **POSITIONS}[name]]
        if name in POSITIONS:
            drawn[name] = torch.randint(0, 16, shape, generator=generator)
        elif name in BOOLEAN:
            drawn[name] = torch.rand(shape, generator=generator) > 0.3
        else:
            data = torch.randn(shape, generator=generator)
            drawn[name] = data.half() if half else data
    return drawn


def export(module: nn.Module, inputs: dict[str, Tensor], exporter: str, opset: int) -> ir.Model:
    """Returns the graph as the exporter wrote it; its results are compared by whoever asks for it."""
    axes = {n: {a: d for a, d in enumerate({**SHAPES, **POSITIONS}[n]) if isinstance(d, str)} for n in inputs}
    with warnings.catch_warnings(), unheard():
        warnings.simplefilter("ignore")  # the exporters' own deprecations and tracer notes
        if exporter == "torchscript":
            out = io.BytesIO()
            torch.onnx.export(
                module, tuple(inputs.values()), out, dynamo=False, opset_version=opset, input_names=list(inputs),
                dynamic_axes=axes,
            )  # fmt: skip
            return ir.from_proto(onnx.load_from_string(out.getvalue()))
        dims = {name: torch.export.Dim(name, min=2, max=64) for name in SIZES}
        program = torch.onnx.export(
            module, tuple(inputs.values()), dynamo=True, opset_version=opset, verbose=False,
            dynamic_shapes=tuple({a: dims[d] for a, d in axes[n].items()} for n in inputs),
        )  # fmt: skip
        return program.model


@contextmanager
def unheard() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # "torchvision is not installed", once for each export
    try:
        yield
    finally:
        logging.disable(before)
