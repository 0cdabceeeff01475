"""Judges one architecture through one implementation: every route exported, fused, lowered, run, and compared.

A block counts as right if it is one op in the fused graph and that graph is right, as ONNX Runtime computes it, in
every case: float64 PyTorch is the truth, PyTorch's own error at float32 the yardstick (`export.parity`). Where the
export itself differs from PyTorch, which is then said to be the exporter's with what it did, the fused graph must give
what PyTorch gives or what the export gives.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import corpus_module
import numpy as np
import onnx_ir as ir
from corpus_count import count
from corpus_entry import Entry
from corpus_export import export

from engines.errors import ToolkitError, UsageError
from engines.ort_runner import OrtRunner
from export.capture.quiet import quiet
from export.fuse import FuseResult, Options, fuse
from export.lower import lower
from export.parity import ParityCase
from export.parity.compare import Expected, compare
from export.parity.precision import precision
from export.parity.reference import Reference, Truth

Cases = dict[str, str]
"""{case: "ok", or what is wrong}."""

Runner = OrtRunner | str
"""A model that can be run, or why it cannot."""

OK = "ok"
AS_EXPORTED = "as the export, which differs from PyTorch"
NO_EVIDENCE = "neither the export nor the fused graph runs"


@dataclass
class Row:
    """What came of one export.

    Attributes:
        name, impl, route: Which.
        expected: Attention blocks that PyTorch computes.
        peak: How far its attention is from uniform (1 is uniform).
        failed: Why there is no export, in the exporter's words; else empty.
        nodes: Nodes of the export.
        one_op: Blocks that are one op after fusing.
        already: How many of those were on arrival.
        kept: (code, reason) of each Softmax that stayed.
        rotary: RotaryEmbedding ops after fusing.
        exported, fused: What the export, and the fused graph, give in each case.
        seconds: Process time of fusing, verification included.
        crash: The fuser's or the lowering's own error; else empty.
    """

    name: str
    impl: str
    route: str
    expected: int = 0
    peak: float = 0.0
    failed: str = ""
    nodes: int = 0
    one_op: int = 0
    already: int = 0
    kept: list[tuple[str, str]] = field(default_factory=list)
    rotary: int = 0
    exported: Cases = field(default_factory=dict)
    fused: Cases = field(default_factory=dict)
    seconds: float = 0.0
    crash: str = ""

    @property
    def wrong(self) -> Cases:
        """The cases where the fused graph gives neither what PyTorch nor what the export gives."""
        return {case: said for case, said in self.fused.items() if said not in (OK, AS_EXPORTED, NO_EVIDENCE)}

    @property
    def exporters_fault(self) -> Cases:
        """The cases where the export itself is wrong; a fused graph that is right there has repaired it."""
        return {c: said for c, said in self.exported.items() if said != OK}

    @property
    def judged(self) -> bool:
        """Says whether there is an export that is right in some case, so that blocks are to be fused."""
        return not self.failed and (not self.fused or any(said != NO_EVIDENCE for said in self.fused.values()))

    @property
    def right(self) -> int:
        """How many blocks are one op in a graph that is right."""
        return 0 if self.crash or self.wrong else min(self.one_op, self.expected)

    @property
    def verdict(self) -> str:
        """One word or two."""
        if self.failed:
            return "no export"
        if self.crash:
            return "crashed"
        if not self.judged:
            return "exporter's"
        if self.wrong:
            return "WRONG"
        return "ok" if self.one_op >= self.expected else "kept"


def judge(entry: Entry, impl: str, routes: tuple[str, ...], folder: Path, *, numbers: bool = True) -> list[Row]:
    """Returns a row for each route; none where `transformers` has no such implementation.

    Args:
        entry: The architecture.
        impl: "eager" or "sdpa".
        routes: Names in `corpus_export.ROUTES`.
        folder: Where exports are kept.
        numbers: Run and compare; without, blocks are only counted.
    """
    try:
        with quiet():
            module = corpus_module.build(entry, impl)
    except ValueError as error:
        if "does not support an attention implementation" in str(error):
            return []
        raise
    counted = count(module, tuple(corpus_module.draw(entry, 0).values()))
    rows, bench = [], Bench(entry, module)
    for route in routes:
        row = Row(entry.name, impl, route, counted.blocks, counted.peak)
        rows.append(row)
        exported = export(entry, impl, route, folder, module)
        row.failed = exported.reason
        if exported.path is not None:
            fused = _fused(row, exported.path)
            if numbers:
                row.exported, row.fused = bench.compare(opened(exported.path), fused)
    return rows


def opened(model: Path | bytes) -> Runner:
    """Returns a model ready to run on ONNX Runtime's CPU provider, or why it is not."""
    try:
        return OrtRunner(model if isinstance(model, bytes) else str(model), threads=1)
    except ToolkitError as error:
        return f"It does not load: {error}"


def _fused(row: Row, path: Path) -> Runner:
    try:
        model = ir.load(path)
        row.nodes = sum(1 for _ in model.graph)
        start = time.process_time()
        result = fuse(model, Options())
        row.seconds = time.process_time() - start
        read(row, result)
        lowered = lower(result.model, "ort").model
    except Exception as error:  # a crash is a finding, and the other routes are still to be judged
        row.crash = f"{type(error).__name__}: {error}"
        return row.crash
    return opened(ir.to_proto(lowered).SerializeToString())


def read(row: Row, result: FuseResult) -> None:
    """Copies what the fuser says into a row."""
    row.one_op, row.already = result.summary.fused + result.summary.already, result.summary.already
    row.kept = [(a.code, a.reason) for a in result.attentions if a.status == "kept"]
    row.rotary = sum(n.op_type == "RotaryEmbedding" for n in result.model.graph)


class InFloat32(Reference):
    """The truth of a module that names float32 itself and so does not run, or overflows, in float64: PyTorch's own."""

    def _exact(self, case: ParityCase, inputs: dict[str, Any], *, zero: bool) -> tuple[dict[str, Any], bool]:
        return self._own(case, inputs), False


class Bench:
    """One module's cases and their truth, which is computed once for all graphs made from it."""

    def __init__(self, entry: Entry, module: Any) -> None:
        self._entry, self._module = entry, module

    @cached_property
    def _truths(self) -> list[tuple[ParityCase, Truth]]:
        reference: Reference = Reference(self._module, precision("fp32"))
        draws = (corpus_module.draw(self._entry, at) for at in range(len(self._entry.cases)))
        cases = [ParityCase(n, x, positional=True) for n, x in zip(self._entry.cases, draws, strict=True)]
        try:
            found = [(case, reference.truth(case)) for case in cases]
            if not any(_lost(truth) for _, truth in found):
                return found
        except UsageError:
            pass
        reference = InFloat32(self._module, precision("fp32"))
        return [(case, reference.truth(case)) for case in cases]

    def compare(self, before: Runner, after: Runner) -> tuple[Cases, Cases]:
        """Returns what an export gives in each case, and what the graph made from it gives."""
        exported, fused = Cases(), Cases()
        for case, truth in self._truths:
            exported[case.name], given = _judged(before, case, truth.same)
            said, _ = _judged(after, case, truth.keep)
            if OK not in (exported[case.name], said):
                said = _alike(after, case, truth, given, said) if given else NO_EVIDENCE
            fused[case.name] = said
        return exported, fused


def _lost(truth: Truth) -> bool:
    """Says whether float64 has no number where PyTorch's own answer is all numbers: its finfo.min overflows a cast."""
    own = all(np.isfinite(x).all() for x in truth.pytorch.values())
    return own and not all(np.isfinite(e.value).all() for e in truth.same)


def _alike(runner: Runner, case: ParityCase, truth: Truth, given: Mapping[str, Any], said: str) -> str:
    """Judges a graph by its export where that is not what PyTorch gives; both may err from what the export means."""
    pairs = zip(truth.same, given.values(), strict=True)
    meant = (
        replace(e, value=x.astype("float64"), reach=2 * e.reach, reach_norm=2 * e.reach_norm, other=None)
        for e, x in pairs
    )
    alike, _ = _judged(runner, case, tuple(meant))
    return AS_EXPORTED if alike == OK else f"{said} And not what the export gives: {alike}"


def _judged(runner: Runner, case: ParityCase, expected: tuple[Expected, ...]) -> tuple[str, Mapping[str, Any]]:
    """Returns "ok" or what is wrong, and the outputs where it ran."""
    if isinstance(runner, str):
        return runner, {}
    feeds = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    names = [spec.name for spec in runner.inputs]
    if not set(names) <= set(feeds):
        feeds = dict(zip(names, feeds.values(), strict=True))
    try:
        outputs = runner.run({name: feeds[name] for name in names})
    except ToolkitError as error:
        return f"It did not run: {error}", {}
    if len(outputs) != len(expected):
        return f"It has {len(outputs)} outputs, not {len(expected)}.", {}
    pairs = zip(outputs.items(), expected, strict=True)
    verdicts = [compare(x, replace(e, name=name), precision("fp32")) for (name, x), e in pairs]
    bad = next((v for v in verdicts if not v.ok), None)
    return (OK if bad is None else f"{bad.reason} (error {bad.max_error}, {bad.ratio} of its budget)"), outputs
