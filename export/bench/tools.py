"""What the tools make of one ONNX file: this project, onnxscript's ort_fusions, ONNX Runtime's optimizer.

Each reads a file and writes another. Weights beyond `INLINE` go beside it, for all of them alike: how a file keeps its
weights decides how much memory opening it takes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from export.bench.contender import Unavailable
from export.bench.quiet import quiet

INLINE = 2**26
"""Bytes of weights that a file may hold itself."""

SUITED = ("bert", "gpt2", "gpt_neox", "phi", "unet", "vit")
"""The model types of ONNX Runtime's optimizer that are tried; of those that give a graph, the one with most attention
operators is timed (the first of them, where they give the same number)."""

_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention")


def fused(path: Path, out: Path, *, verify: bool = True) -> Path:
    """Writes what this project makes of a file before it is lowered for ONNX Runtime, and returns the path."""
    from export.fusing import fuse

    return written(fuse(path, target="onnx", verify=verify).model, out)


def lowered(path: Path, out: Path, *, verify: bool = True) -> Path:
    """Writes what `python -m export fuse` writes: fused, and lowered for ONNX Runtime; returns the path."""
    from export.fusing import fuse

    return written(fuse(path, target="ort", verify=verify).model, out)


def onnxscript(path: Path, out: Path) -> Path:
    """Writes what onnxscript's rewriter for ONNX Runtime makes of a file, and returns the path.

    Raises:
        Unavailable: It raises.
    """
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    try:
        with quiet():
            made, _ = optimize_for_ort(ir.load(path))
            return written(made, out)
    except Exception as error:  # a tool's failure is its answer
        raise Unavailable(_said("onnxscript", error)) from error


def ort_optimizer(path: Path, out: Path, heads: int, width: int) -> Path:
    """Writes what ONNX Runtime's transformer optimizer makes of a file, told the sizes, and returns the path.

    Args:
        path: The file.
        out: The file to write.
        heads: Query heads.
        width: Heads times the head size; 0, like 0 heads, lets it look for itself.

    Raises:
        Unavailable: It raises for every model type.
    """
    from onnxruntime.transformers import optimizer

    best: ir.Model | None = None
    failure = "ONNX Runtime's optimizer knows none of the model types that were tried"
    with quiet():
        for kind in (k for k in SUITED if k in optimizer.MODEL_TYPES):
            try:
                made = optimizer.optimize_model(str(path), kind, num_heads=heads, hidden_size=width, opt_level=0).model
                model = ir.from_proto(made)
            except Exception as error:  # a tool's failure is its answer
                failure = _said("ONNX Runtime's optimizer", error)
                continue
            if best is None or attentions(model) > attentions(best):
                best = model
    if best is None:
        raise Unavailable(failure)
    return written(best, out)


PEERS: Mapping[str, Callable[[Path, Path, int, int], Path]] = MappingProxyType(
    {
        "onnxscript ort_fusions": lambda path, out, heads, width: onnxscript(path, out),
        "ONNX Runtime optimizer": ort_optimizer,
    }
)
"""Peers that turn the same file into another: each takes (file, file to write, query heads, heads times head
size)."""


def attentions(model: ir.Model) -> int:
    """Returns how many attention operators, standard or ONNX Runtime's, a model holds."""
    return sum(node.op_type in _ATTENTION for graph in model.graphs() for node in graph)


def written(model: ir.Model, out: Path) -> Path:
    """Writes a model as every contender's file is written, and returns the path."""
    from export import model_file

    model_file.save(model, out, inline_limit=INLINE)
    return out


def _said(tool: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{tool} raised {type(error).__name__}: {lines[0][:160]}"
