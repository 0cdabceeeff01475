"""The three tools that fuse attention in an ONNX file, each as one function from a file to a graph."""

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

HEADS, HIDDEN = 4, 64
"""What the corpus' models have; ONNX Runtime's optimizer finds them by itself in few graphs."""

ATTENTION = {("", "Attention")} | {
    ("com.microsoft", op)
    for op in (
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
    )
}
"""Operators that are one attention."""


@dataclass(frozen=True)
class Made:
    """What a tool made of a file.

    Attributes:
        model: The serialised graph as ONNX Runtime is to run it; None where the tool failed.
        blocks: Attention operators in it, those that were there before included.
        seconds: Process time of fusing alone: not of reading the file, nor of importing the tool.
        said: What it failed with.
        how: What of the tool was used, where it has several ways.
    """

    model: bytes | None
    blocks: int = 0
    seconds: float = 0.0
    said: str = ""
    how: str = ""


def blocks(model: ir.Model) -> int:
    """Returns how many attention operators a model holds, its functions and bodies included."""
    graphs = [model.graph, *model.functions.values()]
    return sum(((n.domain or "").replace("ai.onnx", ""), n.op_type) in ATTENTION for g in graphs for n in g.all_nodes())


def ours(path: Path) -> Iterator[Made]:
    """Yields what this project makes of it, each block verified, as ONNX Runtime runs it."""
    from export.fuse import Options, fuse
    from export.lower import lower

    def run(model: ir.Model) -> ir.Model:
        return lower(fuse(model, Options()).model, "ort").model

    yield _timed(path, run)


def onnxscript(path: Path) -> Iterator[Made]:
    """Yields what onnxscript's rewriter for ONNX Runtime makes of it."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run(model: ir.Model) -> ir.Model:
        fused, _ = optimize_for_ort(model)
        return fused

    yield _timed(path, run)


def ort_optimizer(path: Path) -> Iterator[Made]:
    """Yields what ONNX Runtime's transformer optimizer makes of it for each of its model types, told the sizes."""
    from onnxruntime.transformers import optimizer

    for kind in optimizer.MODEL_TYPES:
        start = time.process_time()
        try:
            with _quiet():
                made = optimizer.optimize_model(str(path), kind, num_heads=HEADS, hidden_size=HIDDEN, opt_level=0)
            seconds = time.process_time() - start
            model = ir.from_proto(made.model)
            yield Made(made.model.SerializeToString(), blocks(model), seconds, how=kind)
        except Exception as error:  # a tool's failure is its answer
            yield Made(None, seconds=time.process_time() - start, said=_first_line(error), how=kind)


TOOLS: dict[str, Callable[[Path], Iterator[Made]]] = {
    "attnproof": ours,
    "onnxscript ort_fusions": onnxscript,
    "ONNX Runtime optimizer": ort_optimizer,
}
"""By the names in the table."""


def _timed(path: Path, run: Callable[[ir.Model], ir.Model]) -> Made:
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    start = time.process_time()
    try:
        with _quiet():
            made = run(model)
        seconds = time.process_time() - start
        return Made(ir.to_proto(made).SerializeToString(), blocks(made), seconds)
    except Exception as error:  # a tool's failure is its answer
        return Made(None, seconds=time.process_time() - start, said=_first_line(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]
