"""How long each tool's pass takes on deep models: ours without verification, all without reading and writing files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from fusion_tools import loaded, measured, optimized

LIMIT = 60.0
"""Process seconds that a tool has for one pass."""

AGAIN = 10.0
"""A pass that takes less process seconds than this runs twice, and the better time counts."""


def ours(path: Path) -> Callable[[], ir.Model]:
    """Returns our pass on a file's model."""
    from export.fuse import Options, fuse

    def run(model: ir.Model) -> ir.Model:
        return fuse(model, Options(verify=False)).model

    return partial(run, loaded(path))


def onnxscript(path: Path) -> Callable[[], ir.Model]:
    """Returns onnxscript's pass on a file's model."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run(model: ir.Model) -> ir.Model:
        fused, _ = optimize_for_ort(model)
        return fused

    return partial(run, loaded(path))


def ort_optimizer(path: Path) -> Callable[[], onnx.ModelProto]:
    """Returns ONNX Runtime's pass on a file's model, of its type for decoders with rotary embedding."""
    import onnxruntime.transformers.optimizer  # noqa: F401 - importing it is not the pass

    return partial(optimized, onnx.load(path), "qwen3")


PASSES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "attnproof": ours,
    "onnxscript ort_fusions": onnxscript,
    "ONNX Runtime optimizer": ort_optimizer,
}
"""By the names in the table."""


def pass_time(tool: str, path: Path, limit: float = LIMIT) -> dict[str, Any]:
    """Returns a pass' process seconds (None where it did not end well), the graph's nodes, and the blocks it left."""
    nodes = sum(1 for _ in ir.load(path).graph)
    made = measured(PASSES[tool](path), limit)
    if made.model is None:
        return {"nodes": nodes, "seconds": None, "blocks": 0, "said": made.said}
    seconds = made.seconds
    if seconds < AGAIN:
        seconds = min(seconds, measured(PASSES[tool](path), limit).seconds)
    return {"nodes": nodes, "seconds": round(seconds, 3), "blocks": made.blocks, "said": ""}
