"""What is wrong with how a program was fused: its meaning, its numbers on ONNX Runtime, its rows, fusing it twice."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from fuzz_draft import BRAIN, FLOAT, HALF, Program
from fuzz_feeds import TRIALS, Trial, feeds
from fuzz_oracle import evaluate
from fuzz_tensor import Rounding, Tensor

from export.errors import LoweringRefusedError
from export.fuse import FuseResult, Options, fuse
from export.lower import lower

Arrays = Mapping[str, np.ndarray]
_HAND_WRITTEN = ("by hand", "by hand, safe", "less_its_maximum", "exp of log", "turned")
_TINY = 1e-30
_FAITHFUL = Rounding(native=True, faithful=True)
_ROWS = next(t for t in TRIALS if t.pattern == "rows")


@dataclass
class Verdict:
    """What became of a program.

    Attributes:
        codes: The code of each of its rows, with verification.
        read: The code of each of its rows, without.
        wrong: One sentence for each thing that is wrong.
        notes: What could not be checked, and why.
    """

    codes: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def judge(program: Program) -> Verdict:
    """Fuses a program with and without verification and compares all that comes out with what it meant."""
    verdict = Verdict()
    model = ir.from_proto(program.proto)
    read, verified = fuse(model, Options(verify=False)), fuse(model)
    verdict.codes = tuple(r.code for r in verified.attentions)
    verdict.read = tuple(r.code for r in read.attentions)
    for result in (read, verified):
        verdict.wrong += _rows(result)
    original = _Original(program, verdict)
    changed = {"without verification": read}
    if serialised(read.model) != serialised(verified.model):
        changed["with verification"] = verified
    for how, result in changed.items():
        if serialised(result.model) == serialised(model):
            continue
        onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
        again = fuse(result.model, Options(verify=result is verified)).model
        rolled_back = any(code.startswith("V") for code in verdict.codes)
        if serialised(again) != serialised(result.model) and not (rolled_back and result is verified):
            verdict.wrong.append(f"{how}: fusing twice differs from fusing once.")
        verdict.wrong += [f"{how}: {said}" for said in original.compared(result.model)]
    if "F001" in verdict.read and not set(program.stages) & set(_HAND_WRITTEN):
        zero = fuse(model, Options(verify=False, masked_rows="zero")).model
        verdict.wrong += [f"masked_rows=zero: {said}" for said in original.compared_with_rows_of_zero(zero)]
    return verdict


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _rows(result: FuseResult) -> list[str]:
    found = []
    for row in result.attentions:
        known = {"fused": "F001", "already": "A001"}.get(row.status) or row.code
        sentence = bool(row.reason) and (row.reason[0].isupper() or row.reason[0] == "'") and row.reason.endswith(".")
        if row.code != known or not re.fullmatch(r"[FAKV]\d{3}", row.code) or not sentence:
            found.append(f"row {row.code} of {row.name!r} says {row.reason!r}.")
    return found


class _Original:
    """The program as it was, read by the oracle and run by ONNX Runtime on all trials."""

    def __init__(self, program: Program, verdict: Verdict) -> None:
        self._program = program
        self._verdict = verdict
        self._names = [o.name for o in program.proto.graph.output]
        self._readings: dict[tuple[str, Rounding], dict[str, Tensor]] = {}
        self._overflowed: set[str] = set()
        self._runs: dict[str, Arrays] | None = None

    def _reading(self, trial: Trial, rounding: Rounding) -> dict[str, Tensor]:
        key = (trial.name, rounding)
        if key not in self._readings:
            known = evaluate(self._program.proto, feeds(self._program, trial), rounding)
            if _overflows(self._program.proto, known):
                self._overflowed.add(trial.name)
            self._readings[key] = {name: known[name] for name in self._names}
        return self._readings[key]

    def compared(self, model: ir.Model) -> list[str]:
        """Returns how a fused model differs from the program."""
        proto, found = ir.to_proto(model), []
        for trial in TRIALS:
            have = evaluate(proto, feeds(self._program, trial), Rounding(native=False))
            if _reads_nan(proto, have):
                continue
            said = self._differs(trial, have, Rounding(False), -np.inf)
            found += [f"meaning: {s}" for s in said]
        have = evaluate(proto, feeds(self._program, _ROWS), _FAITHFUL)
        if _reads_nan(proto, have):
            return found
        found += [f"rounded: {s}" for s in self._differs(_ROWS, have, _FAITHFUL, -np.inf)]
        return found or self._run(model)

    def compared_with_rows_of_zero(self, model: ir.Model) -> list[str]:
        """Returns how a model differs in which rows without keys were asked to be 0."""
        proto = ir.to_proto(model)
        have = evaluate(proto, feeds(self._program, _ROWS), _FAITHFUL)
        return [] if _reads_nan(proto, have) else self._differs(_ROWS, have, _FAITHFUL, -200.0)

    def _differs(
        self, trial: Trial, have: Mapping[str, Tensor], rounding: Rounding, empty: float, ran: Arrays | None = None
    ) -> list[str]:
        found: list[str] = []
        for name in self._names:
            want, got = self._reading(trial, rounding)[name], have[name]
            if want.x.shape != got.x.shape or want.kind != got.kind:
                found.append(f"{trial.name}: '{name}' is {got.kind}{got.x.shape}, was {want.kind}{want.x.shape}.")
                continue
            right = self._right(trial, name, got, rounding, empty)
            if not right.all() and ran is not None:  # the runtime keeps some halves wide, so that they do not overflow
                own = replace(want, x=ran[name].astype(np.float64))
                right |= ~self._right(trial, name, own, rounding, empty) | (np.isnan(want.x) & (want.kind == HALF))
            if "by hand" in self._program.stages:  # 0 / 0, where no exponential of a row is left
                right |= np.isnan(want.x)
            if trial.name in self._overflowed:
                continue
            if not right.all():
                _, limit = _off(want, got)
                at = np.unravel_index(np.argmin(right), right.shape)
                found.append(
                    f"{trial.name}: '{name}'{[int(i) for i in at]} is {got.x[at]:.6g}, was {want.x[at]:.6g}, "
                    f"bound {limit[at]:.2g}."
                )
        return found

    def _right(self, trial: Trial, name: str, got: Tensor, rounding: Rounding, empty: float) -> np.ndarray:
        """Says where a result is what the program means; a row without keys may be 0.

        Exponentials over their sum are 0/0 or inf/inf where a softmax, which takes the maximum off, has a number.
        """
        want = self._reading(trial, rounding)[name]
        off, limit = _off(want, got)
        right = off <= limit
        if "by hand" in self._program.stages:
            right |= np.isnan(want.x)
        if not right.all():
            off, limit = _off(self._reading(trial, replace(rounding, empty=empty))[name], got)
            right |= off <= limit
        return right

    def _run(self, model: ir.Model) -> list[str]:
        """Compares on ONNX Runtime, where that runs the program at all."""
        if self._runs is None:
            self._runs = {}
            run = _session(self._program.proto) if self._program.kind != BRAIN else "no bfloat16"
            if isinstance(run, str):
                self._verdict.notes.append(f"not run: {run}")
            else:
                self._runs = {t.name: run(feeds(self._program, t)) for t in TRIALS}
        if not self._runs:
            return []
        try:
            run = _session(ir.to_proto(lower(model, "ort").model))
        except LoweringRefusedError as error:
            return [f"does not lower to ONNX Runtime: {error}"]
        if isinstance(run, str):
            return [f"does not load: {run}"]
        found, proto = [], ir.to_proto(model)
        for trial in TRIALS:
            given = feeds(self._program, trial)
            try:
                results = run(given)
            except RuntimeError as error:
                found.append(f"{trial.name}: does not run: {error}")
                continue
            bound = evaluate(proto, given, Rounding(native=True))
            if _reads_nan(proto, bound):
                continue
            have = {n: Tensor(results[n].astype(np.float64), bound[n].kind, bound[n].e) for n in self._names}
            said = self._differs(trial, have, Rounding(native=True), -np.inf, self._runs[trial.name])
            if not said and trial is _ROWS and self._program.kind == FLOAT:
                faithful = evaluate(proto, given, _FAITHFUL)
                have = {n: replace(faithful[n], x=results[n].astype(np.float64)) for n in self._names}
                said = self._differs(trial, have, _FAITHFUL, -np.inf, self._runs[trial.name])
            found += [f"ONNX Runtime: {s}" for s in said]
        return found


def _reads_nan(proto: onnx.ModelProto, known: Mapping[str, Tensor]) -> bool:
    """Says whether a block before gave an attention NaN: a guard against rows without keys may stop those too."""
    attentions = [node for node in proto.graph.node if node.op_type == "Attention"]
    return any(np.isnan(known[name].x).any() for node in attentions for name in node.input[:3])


def _overflows(proto: onnx.ModelProto, known: Mapping[str, Tensor]) -> bool:
    """Says whether a softmax written by hand leaves the range of its type, where one operator does not."""
    powers = [node for node in proto.graph.node if node.op_type in ("Exp", "ReduceSum", "Reciprocal")]
    return any(np.isposinf(known[n.output[0]].x).any() for n in powers)


def _off(want: Tensor, have: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns how far two tensors are apart and how far they may be; equal infinities and NaNs are 0 apart."""
    alike = (want.x == have.x) | (np.isnan(want.x) & np.isnan(have.x))
    with np.errstate(all="ignore"):
        limit = np.broadcast_to(np.asarray(want.e) + np.asarray(have.e) + _TINY, want.x.shape)
        off = np.where(alike, 0.0, np.abs(want.x.astype(np.float64) - have.x))
    return np.where(np.isnan(off), np.inf, off), np.nan_to_num(limit, nan=0.0)


def _session(proto: onnx.ModelProto):
    """Returns a function that runs a model on ONNX Runtime, or why there is none."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [o.name for o in proto.graph.output]
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own types of error have no common base
        return str(error).splitlines()[0]
    taken = {i.name for i in session.get_inputs()}

    def run(given: Arrays) -> dict[str, np.ndarray]:
        try:
            results = session.run(names, {n: a for n, a in given.items() if n in taken})
        except Exception as error:
            raise RuntimeError(str(error).splitlines()[0]) from error
        return dict(zip(names, results, strict=True))

    return run
