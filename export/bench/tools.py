"""What the tools make of one ONNX file: this project, onnxscript's ort_fusions, ONNX Runtime's optimizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from export.bench.contender import Unavailable
from export.bench.quiet import quiet

SUITED = ("bert", "gpt2", "gpt_neox", "phi", "unet", "vit")
"""The model types of ONNX Runtime's optimizer that are tried; of those that give a graph, the one with most attention
operators is timed (the first of them, where they give the same number)."""

_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention")


def fused(path: Path, *, verify: bool = True) -> bytes:
    """Returns what this project makes of a file before it is lowered for ONNX Runtime."""
    from export.fusing import fuse

    return _bytes(fuse(path, target="onnx", verify=verify).model)


def lowered(path: Path, *, verify: bool = True) -> bytes:
    """Returns what `python -m export fuse` writes: fused, and lowered for ONNX Runtime."""
    from export.fusing import fuse

    return _bytes(fuse(path, target="ort", verify=verify).model)


def onnxscript(path: Path) -> bytes:
    """Returns what onnxscript's rewriter for ONNX Runtime makes of a file.

    Raises:
        Unavailable: It raises.
    """
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    try:
        with quiet():
            made, _ = optimize_for_ort(ir.load(path))
            return _bytes(made)
    except Exception as error:  # a tool's failure is its answer
        raise Unavailable(_said("onnxscript", error)) from error


def ort_optimizer(path: Path, heads: int, width: int) -> bytes:
    """Returns what ONNX Runtime's transformer optimizer makes of a file, told the sizes.

    Args:
        path: The file.
        heads: Query heads.
        width: Heads times the head size; 0, like 0 heads, lets it look for itself.

    Raises:
        Unavailable: It raises for every model type.
    """
    from onnxruntime.transformers import optimizer

    found: dict[bytes, int] = {}
    failure = "ONNX Runtime's optimizer knows none of the model types that were tried"
    with quiet():
        for kind in (k for k in SUITED if k in optimizer.MODEL_TYPES):
            try:
                made = optimizer.optimize_model(str(path), kind, num_heads=heads, hidden_size=width, opt_level=0).model
                found.setdefault(made.SerializeToString(), attentions(ir.from_proto(made)))
            except Exception as error:  # a tool's failure is its answer
                failure = _said("ONNX Runtime's optimizer", error)
    if not found:
        raise Unavailable(failure)
    return max(found, key=lambda model: found[model])


PEERS: Mapping[str, Callable[[Path, int, int], bytes]] = MappingProxyType(
    {
        "onnxscript ort_fusions": lambda path, heads, width: onnxscript(path),
        "ONNX Runtime optimizer": ort_optimizer,
    }
)
"""Peers that turn the same file into another: each takes (file, query heads, heads times head size)."""


def attentions(model: ir.Model) -> int:
    """Returns how many attention operators, standard or ONNX Runtime's, a model holds."""
    return sum(node.op_type in _ATTENTION for graph in model.graphs() for node in graph)


def _bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())


def _said(tool: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{tool} raised {type(error).__name__}: {lines[0][:160]}"
