"""Whether the numbers of a graph fit fp16, measured on the parity cases before any engine is trusted with them.

A tensor beyond fp16's range becomes infinity where it is stored. Whether that matters is measured too: the outputs are
computed with exactly those tensors stored in fp16 and all else in float32. If an output changes by more than storing it
in fp16 would, the build fails; masks that become -inf, for one, change nothing. Scores inside an attention that runs as
one kernel are never stored: such kernels keep them in float32.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from engines.errors import ToolkitError
from export.graph import shapes
from export.graph.source_lines import source_line
from export.precision import range_probe
from export.precision.range_probe import OVERFLOWS, Tensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Feeds = Mapping[str, npt.NDArray[np.generic]]

LARGEST, SMALLEST_NORMAL = 65504.0, 2.0**-14
BREAKS, HARMLESS, IN_KERNEL = "breaks the outputs", "none", "held in float32"
_CURE = "Build in bf16 (--dtype bf16), keep that step in float32, or scale its operands"


@dataclass(frozen=True)
class Finding:
    """One tensor that fp16 cannot hold on a parity case.

    Attributes:
        kind: "overflow", or "underflow" where all of its numbers lie below fp16's normal ones.
        tensor: Its name in the exported graph; "<node>/scores" for scores inside an Attention.
        node: The node that makes it, "" for an input.
        op: That node's operator.
        source: The user's PyTorch line, where the exporter recorded one.
        value: The number of largest magnitude that it reached.
        case: The parity case in which it did.
        effect: "breaks the outputs", "none", or "held in float32" (it is inside an attention of one kernel).
        mask: Whether it is too low only, as the fill of a mask is.
    """

    kind: str
    tensor: str
    node: str
    op: str
    source: str | None
    value: float
    case: str
    effect: str = HARMLESS
    mask: bool = False

    def sentence(self) -> str:
        """Returns the tensor, its place, its value, what becomes of it and what to do."""
        maker = f"made by {self.node!r} ({self.op})" if self.node else "an input"
        where = f" [{self.source}]" if self.source else ""
        seen = f"Tensor {self.tensor!r}, {maker}{where}, reaches {self.value:.4g} in case {self.case}"
        if self.kind == "underflow":
            lost = f"below fp16's normal numbers (6.1e-05), where digits are lost: {_effects(self.effect)}"
            return f"{seen} at most, {lost}. {_CURE}."
        if self.effect == IN_KERNEL:
            return f"{seen}, beyond fp16's largest number 65504; the fused attention holds it in float32."
        return f"{seen}, beyond fp16's largest number 65504: stored as infinity, {_effects(self.effect)}. {_CURE}."


@dataclass(frozen=True)
class RangeAudit:
    """What was measured.

    Attributes:
        status: "ran", "not needed" (the precision has float32's range) or "not run".
        why: The reason where it did not run.
        cases: Names of the cases that were run.
        tensors: How many tensors were measured in each.
        largest: The largest magnitude of all that fp16 stores.
        largest_tensor: The name of the tensor that reaches it.
        findings: What does not fit, in graph order: the first that breaks the outputs is the cause of the others.
    """

    status: str = "not run"
    why: str = ""
    cases: tuple[str, ...] = ()
    tensors: int = 0
    largest: float = 0.0
    largest_tensor: str = ""
    findings: tuple[Finding, ...] = ()

    def cause(self, case: str) -> Finding | None:
        """Returns the first tensor that breaks the outputs in a case."""
        return min((f for f in self.findings if f.effect == BREAKS and f.case == case), key=_order, default=None)

    def failures(self) -> tuple[str, ...]:
        """Returns a sentence about the first tensor whose overflow breaks the outputs, and how many others do."""
        broken = [f for f in self.findings if f.effect == BREAKS and f.kind == "overflow"]
        if not broken:
            return ()
        broken.sort(key=_order)
        more = len({f.tensor for f in broken}) - 1
        return (f"range: {broken[0].sentence()}{f' {more} more tensors overflow; see report.json.' if more else ''}",)

    def warnings(self) -> tuple[str, ...]:
        """Returns a sentence about each tensor that does not fit and should be known of though nothing broke."""
        told: dict[str, Finding] = {}
        for found in self.findings:
            quiet = (found.effect == HARMLESS and (found.mask or found.kind == "underflow")) or found.tensor in told
            if not quiet and not (found.effect == BREAKS and found.kind == "overflow"):
                told[found.tensor] = found
        return tuple(f"range: {found.sentence()}" for found in told.values())

    def summary(self) -> str:
        """Returns one line for the log."""
        if self.status != "ran":
            return f"{self.status}: {self.why}"
        seen = f"{self.tensors} tensors in {len(self.cases)} cases"
        return f"{seen}, the largest {self.largest:.4g} ({self.largest_tensor}), {len(self.findings)} findings"

    def as_json(self) -> dict[str, Any]:
        """Returns `range_audit` of report.json."""
        content = asdict(self)
        return {**content, "cases": list(content["cases"]), "findings": list(content["findings"])}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "RangeAudit":
        """Returns the audit that `as_json` wrote."""
        findings = tuple(Finding(**found) for found in data["findings"])
        return RangeAudit(**{**data, "cases": tuple(data["cases"]), "findings": findings})


def _order(finding: Finding) -> tuple[bool, bool]:
    """Puts what overflows before what loses digits, and masks last; what is equal stays in the order of the graph."""
    return finding.kind != "overflow", finding.mask


NOT_NEEDED = {
    "bf16": "bf16 has float32's range",
    "fp32": "the graph computes in fp32",
}


def audit(
    model: ir.Model, dtype: str, cases: "Iterable[tuple[str, Feeds]]", lowered: ir.Model, apart: bool
) -> RangeAudit:
    """Returns which tensors of an exported graph do not fit fp16 on these cases, and what that does.

    Args:
        model: The exported graph.
        dtype: What it computes in.
        cases: (name, feeds by graph input) of each parity case.
        lowered: The graph for the target: tensors that it has no more are inside a fused operator.
        apart: Whether an engine computes some attention in separate kernels, which store its scores.
    """
    if dtype in NOT_NEEDED:
        return RangeAudit("not needed", NOT_NEEDED[dtype])
    try:
        model = _typed(model)
        kept = (*lowered.graph.inputs, *(v for node in lowered.graph for v in node.outputs))
        return _audited(model, list(cases), {str(v.name) for v in kept}, apart)
    except ToolkitError as error:
        return RangeAudit("not run", f"ONNX Runtime does not run the graph in float32: {error}")


def _typed(model: ir.Model) -> ir.Model:
    """Returns a graph whose tensors have their types: an exporter need not write those of what lies between."""
    if all(value.dtype is not None for node in model.graph for value in node.outputs if value.name):
        return model
    typed = model.clone()
    shapes.infer(typed)
    return typed


def _audited(model: ir.Model, cases: "list[tuple[str, Feeds]]", stored: Collection[str], apart: bool) -> RangeAudit:
    known = range_probe.tensors(model)
    measure = range_probe.extremes(model, known)
    findings: list[Finding] = []
    largest, where = 0.0, ""
    for case, feeds in cases:
        seen = measure(feeds)
        found = [finding for tensor in known if (finding := _judge(tensor, *seen[tensor.name], case)) is not None]
        for tensor in known:
            most = max(abs(bound) for bound in seen[tensor.name])
            if most > largest and tensor.name in stored:
                largest, where = most, tensor.name
        hidden = {t.name for t in known if not apart and (t.inside or t.name not in stored)}
        findings += _with_effects(model, feeds, found, hidden, {t.name for t in known if t.inside})
    names = tuple(name for name, _ in cases)
    return RangeAudit("ran", "", names, len(known), largest, where, tuple(findings))


def _judge(tensor: Tensor, low: float, high: float, case: str) -> Finding | None:
    value = low if abs(low) > abs(high) else high
    overflow = abs(value) >= OVERFLOWS
    if not overflow and not 0 < abs(value) < SMALLEST_NORMAL:
        return None
    node = tensor.node
    place = (node.name or "", node.op_type, source_line(node)) if node is not None else ("", "", None)
    mask = overflow and high < OVERFLOWS
    return Finding("overflow" if overflow else "underflow", tensor.name, *place, value, case, mask=mask)


def _with_effects(
    model: ir.Model, feeds: "Feeds", found: list[Finding], hidden: Collection[str], inside: Collection[str]
) -> tuple[Finding, ...]:
    """Returns the findings of one case, each kind judged by what storing those tensors in fp16 does to the outputs."""
    done = [replace(f, effect=IN_KERNEL) for f in found if f.tensor in hidden and f.kind == "overflow" and not f.mask]
    exact = None
    for kind in ("overflow", "underflow"):
        mine = [f for f in found if f.kind == kind and f.tensor not in hidden]
        for f in mine:
            if f.tensor in inside:  # separate kernels store the scores, and the softmax subtracts infinity from itself
                done.append(replace(f, effect=BREAKS if kind == "overflow" and not f.mask else HARMLESS))
        mine = [f for f in mine if f.tensor not in inside]
        if mine:
            exact = range_probe.plainly(model)(feeds) if exact is None else exact
            broken = _differs(exact, range_probe.plainly(model, [f.tensor for f in mine])(feeds))
            done += [replace(f, effect=BREAKS if broken else HARMLESS) for f in mine]
    order = {f.tensor: i for i, f in enumerate(found)}
    return tuple(sorted(done, key=lambda f: order[f.tensor]))


def _differs(exact: "Feeds", stored: "Feeds") -> bool:
    """Says whether an output is no longer finite where it was, or off by more than fp16's spacing at its largest."""
    import numpy as np

    for name, before in exact.items():
        if before.dtype.kind != "f" or not before.size:
            continue
        after, wide = stored[name].astype(np.float64), before.astype(np.float64)
        finite = np.isfinite(wide)
        if not np.isfinite(after[finite]).all():
            return True
        most = np.abs(wide[finite]).max(initial=0.0)
        if np.abs(after[finite] - wide[finite]).max(initial=0.0) > 2.0**-10 * most:
            return True
    return False


def _effects(effect: str) -> str:
    return "it changes the outputs" if effect == BREAKS else "the outputs do not change on the parity cases"
