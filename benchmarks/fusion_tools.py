"""The three tools that fuse attention in an ONNX file, each as one function from a file to a graph."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import onnx_ir as ir

from export.bench.quiet import quiet

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


LIMIT = 20.0
"""Process seconds that a tool has for one graph (ONNX Runtime's optimizer: for each model type); a user would wait no
longer for two layers."""


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


class Late(BaseException):
    """A tool's time is over. Not an `Exception`, which a tool might take for a rule that failed."""


def ours(path: Path, limit: float = LIMIT) -> Iterator[Made]:
    """Yields what this project makes of it, each block verified, as ONNX Runtime runs it."""
    from export.fuse import Options, fuse
    from export.lower import lower

    def run(model: ir.Model) -> ir.Model:
        return lower(fuse(model, Options()).model, "ort").model

    yield measured(partial(run, loaded(path)), limit)


def onnxscript(path: Path, limit: float = LIMIT) -> Iterator[Made]:
    """Yields what onnxscript's rewriter for ONNX Runtime makes of it."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run(model: ir.Model) -> ir.Model:
        fused, _ = optimize_for_ort(model)
        return fused

    yield measured(partial(run, loaded(path)), limit)


def ort_optimizer(path: Path, limit: float = LIMIT) -> Iterator[Made]:
    """Yields what ONNX Runtime's transformer optimizer makes of it for each of its model types, told the sizes."""
    from onnxruntime.transformers import optimizer

    for kind in optimizer.MODEL_TYPES:
        yield measured(partial(optimized, onnx.load(path), kind), limit, kind)


def optimized(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Returns what ONNX Runtime's transformer optimizer makes of a model, at the level that it takes by default."""
    from onnxruntime.transformers import optimizer

    made: onnx.ModelProto = optimizer.optimize_model(model, kind, num_heads=HEADS, hidden_size=HIDDEN).model
    return made


TOOLS: dict[str, Callable[[Path], Iterator[Made]]] = {
    "attnproof": ours,
    "onnxscript ort_fusions": onnxscript,
    "ONNX Runtime optimizer": ort_optimizer,
}
"""By the names in the table."""


def loaded(path: Path) -> ir.Model:
    """Returns a file's model, its weights in memory."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def measured(run: Callable[[], Any], limit: float, how: str = "") -> Made:
    """Returns what a tool makes and how long that takes, or what it failed with.

    Args:
        run: The tool, given its model; it returns an `onnx_ir` model or a proto.
        limit: Process seconds that it has.
        how: What of the tool is used.
    """
    start = time.process_time()
    try:
        with quiet(), _limited(limit):
            made = run()
        seconds = time.process_time() - start
        model = made if isinstance(made, ir.Model) else ir.from_proto(made)
        return Made(ir.to_proto(model).SerializeToString(), blocks(model), seconds, how=how)
    except Late:
        return Made(None, seconds=time.process_time() - start, said=f"not done after {limit:g} s", how=how)
    except Exception as error:  # a tool's failure is its answer
        return Made(None, seconds=time.process_time() - start, said=_first_line(error), how=how)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]
