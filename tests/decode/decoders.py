"""Small causal models, and their decode loops judged as a build judges them."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import onnx_ir as ir

from engines.decoding import Decoding
from engines.generator import Generator
from engines.ort_runner import OrtRunner
from export.decode.grow import grow
from export.decode.judge import Judge, Own
from export.decode.static import WRITE_INDICES, Static
from export.decode.tokens import read
from export.fuse import Options, fuse
from export.graph.shapes import infer
from export.lower import for_ort_check, lower
from export.parity.result import ParityRow
from export.spec import Spec
from export.subject import Exported, Subject, load


@dataclass(frozen=True)
class Decoder:
    """A model with its truth: the subject, what was exported of it, the fused graph."""

    subject: Subject
    exported: Exported
    fused: ir.Model
    dtype: str

    @property
    def capacity(self) -> int:
        """The largest length its own ranges allow."""
        return self.subject.dims["length"][2]


@cache
def decoder(source: str, dtype: str = "fp32", exporter: str = "dynamo") -> Decoder:
    """Returns a form or factory, exported and fused."""
    subject = load(Spec(source, dtype=dtype, exporter=exporter))
    exported = subject.exported()
    return Decoder(subject, exported, fuse(exported.model, Options(verify=False)).model, dtype)


@dataclass(frozen=True)
class Graphs:
    """A prefill and a step graph (one and the same for a growing cache), and how they are run."""

    prefill: ir.Model
    step: ir.Model
    decoding: Decoding

    def loop(self, decoding: Decoding | None = None) -> Generator:
        """Returns a decode loop on ONNX Runtime's CPU provider."""
        prefill, step = (opened(model) for model in (self.prefill, self.step))
        return Generator(prefill, step, decoding or self.decoding)


def opened(model: ir.Model) -> OrtRunner:
    """Returns a runner of a graph lowered for any target."""
    return OrtRunner(ir.to_proto(for_ort_check(model)).SerializeToString(), threads=1)


def growing(of: Decoder) -> Graphs:
    """Returns the one graph for ONNX Runtime."""
    step = grow(of.fused)
    lowered = lower(step.model, "ort").model
    return Graphs(lowered, lowered, Decoding("growing", step.tokens, step.mask, step.caches, of.capacity))


def static(of: Decoder, target: str = "tensorrt-rtx") -> Graphs:
    """Returns the two graphs for TensorRT."""
    made = Static(of.fused, of.capacity)
    prefill, step = (lower(model, target).model for model in (made.prefill, made.step))
    decoding = Decoding("static", made.tokens, None, made.caches, of.capacity, WRITE_INDICES)
    return Graphs(prefill, step, decoding)


def judged(of: Decoder, graphs: Graphs) -> list[ParityRow]:
    """Returns a row for each case, as the build's report has them."""
    model = of.fused.clone()
    infer(model)
    tokens = read(model.graph)
    own = Own(tuple(str(m.name) for m in tokens.masks))
    truth: Any = of.subject.whole(of.exported)
    judge = Judge(truth, graphs.decoding, of.subject.dims, (tokens.batch, tokens.length), own, of.dtype)
    runners = [opened(model) for model in dict.fromkeys((graphs.prefill, graphs.step))]
    return judge.rows("decode", lambda: Generator(runners[0], runners[-1], judge.decoding))


def changed(graphs: Graphs, **models: ir.Model) -> Graphs:
    """Returns the graphs with one of them in another shape."""
    return replace(graphs, **models)
