"""Compares one region of two graphs on ONNX Runtime CPU: cut at tensors both have, run on adversarial inputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx_ir as ir

from export.fuse.proof import adversary, workers
from export.fuse.proof.region import Cut, by_name, cut, masks_of, settled, to_model
from export.fuse.proof.running import Arrays, Run
from export.fuse.proof.running import runnable as _runnable
from export.fuse.proof.running import session as _session
from export.fuse.proof.signs import subtracted
from export.fuse.proof.ties import Tie, settle, ties
from export.fuse.proof.twins import Region, Twins
from export.fuse.rows import Verification
from export.graph.laws.levels import zero_or_one
from export.graph.values import Refusal, dims, graphs
from export.lower import bounds

_TINY = 1e-30
_LARGE = 1 << 20
"""Elements of a tensor from which on ONNX Runtime is given more than one thread: starting them costs a small region
more than it takes."""

Bound = Callable[[Arrays], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Before:
    """The graph before fusing.

    Attributes:
        values: Every named value.
        opset: Its default opset.
        free: The symbols whose sizes a caller chooses: those of the graph's inputs.
        settled: What is computed, not drawn: numbers, vectors and conditions that sizes alone decide (positions, the
            ends of a Range, a window), for drawn at random they would decide sizes that no run has, or hide keys that
            are proved to be seen; and what rotary tables are made of, for it is there that their halves are equal.
        ties: Lengths that belong together anywhere in the graph; asked for where a region alone does not tell.
    """

    values: Mapping[str, ir.Value]
    opset: int
    free: frozenset[str]
    settled: frozenset[str] = frozenset()
    ties: Callable[[], tuple[Tie, ...]] = field(default=tuple)

    @classmethod
    def of(cls, model: ir.Model) -> "Before":
        """Returns what comparisons need to know of a model."""
        inputs = [value for graph in graphs(model) for value in graph.inputs]
        free = frozenset(s for value in inputs for s in adversary.symbols(value) or ())
        everywhere = cache(lambda: ties(node for graph in graphs(model) for node in graph))
        return cls(by_name(model), model.graph.opset_imports.get("", 23), free, settled(model), everywhere)


class Comparison:
    """The two regions that end in one node's outputs, and the trials run on them.

    Args:
        before: The graph before.
        node: The node that fusing wrote; its inputs are what `bound` reads.
        outputs: The tensors at or after the node that the graph had before.
        opset: The default opset after.
        masks: An input of the node that is a mask: tensors that only it depends on are drawn as masks.
        masked_rows: The policy for rows without keys that was asked for.
        also: Further tensors of the new region that `bound` reads.
    """

    def __init__(
        self,
        before: Before,
        node: ir.Node,
        outputs: Sequence[ir.Value | None],
        opset: int,
        *,
        masks: ir.Value | None = None,
        masked_rows: str = "keep",
        also: Sequence[ir.Value] = (),
    ) -> None:
        self.name = str(node.name)
        self.masked_rows = masked_rows
        self.outputs = [o for o in outputs if o is not None]
        if not self.outputs or len(self.outputs) != len(outputs):
            raise Refusal("V901", f"'{self.name}' has an output that the graph had no name for; it cannot be checked.")
        olds = [before.values[str(o.name)] for o in self.outputs]
        new_cut, old_cut = _common_cut(self.outputs, olds, before)
        self.nodes = frozenset(new_cut.nodes)
        self.leaves = {**old_cut.shaped, **new_cut.shaped, **old_cut.leaves, **new_cut.leaves}
        inputs = [v for v in node.inputs if v is not None]
        inside = [v for v in (*inputs, *also) if str(v.name) not in new_cut.leaves]
        data = cut([v for v in inputs if v is not masks], lambda v: str(v.name) in new_cut.leaves)
        alone = {} if masks is None else {n: v for n, v in new_cut.leaves.items() if n not in data.leaves}
        found = set() if masks is None else masks_of(masks, new_cut)
        self.mask_only = {name for name, value in alone.items() if name in found and not _learned(value)}
        self.subtracted = set() if masks is None else subtracted(masks, self.mask_only)
        self._ties = (cache(lambda: ties(old_cut.nodes)), before.ties)
        self.sides = (
            Region(old_cut, olds, before.opset),
            Region(new_cut, [*self.outputs, *dict.fromkeys(inside)], opset),
        )
        self._ends = [*inputs, *(v for v in node.outputs if v.name)]

    def twin(self, twins: Twins) -> bytes | None:
        """Returns what is equal for two comparisons only if they compute the same; None where that is not told."""
        return twins.fingerprint(self.sides, self.leaves.values(), self.mask_only, self._ends)

    def run(self, bound: Bound) -> Verification:
        """Runs all trials within `bound`; raises the refusal of the first that differs."""
        threads = workers.count() if max(_largest(side.cut) for side in self.sides) > _LARGE else 1
        old_run, new_run = (_session(_runnable(to_model(s.cut, s.ends, s.opset)), threads) for s in self.sides)
        worst, cases, told = (0.0, 0.0), 0, False
        for at, trial in enumerate(adversary.TRIALS):
            accepted = self._accepted(trial, at, old_run)
            if accepted is None:
                continue
            feeds, expected = accepted
            try:
                found = new_run(feeds)
            except RuntimeError as error:
                raise Refusal(
                    "V902",
                    f"'{self.name}' does not run where the block before it does ({trial.name}); it says {error}.",
                ) from error
            for output, budget in zip(self.outputs, bound({**feeds, **found}), strict=True):
                name = str(output.name)
                try:
                    worst = max(worst, self._worst(trial, expected[name], found[name], budget))
                except Refusal as refusal:
                    if refusal.code != "V907" or trial.pattern == "row":
                        raise
                    worst = max(
                        worst, self._against_exact(trial, name, feeds, expected[name], found[name], budget, refusal)
                    )
            cases += 1
            told = told or set(trial.sizes) != {1}
        if not told:
            raise Refusal("V903", f"The block of '{self.name}' ran at none of the sizes tried; it was not checked.")
        return Verification(max_error=worst[0], budget=worst[1], cases=cases)

    def _accepted(
        self, trial: adversary.Trial, seed: int, old_run: Run
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
        """Draws inputs of sizes that the original graph accepts, and runs it on them."""
        for known in self._ties:
            for sizes in adversary.alternatives(trial.sizes):
                feeds = self._feeds(trial, sizes, known(), np.random.default_rng(seed))
                try:
                    return feeds, old_run(feeds)
                except RuntimeError:
                    continue
        return None

    def _feeds(
        self, trial: adversary.Trial, sizes: tuple[int, ...], known: tuple[Tie, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        try:
            bound = settle(adversary.bind(self.leaves, sizes), known)
            return {
                name: adversary.draw(value, adversary.size(value, bound), trial, self._deep(name), rng)
                for name, value in self.leaves.items()
            }
        except ValueError as error:
            raise Refusal("V904", f"'{self.name}' cannot be checked: {error}.") from error

    def _deep(self, name: str) -> float | None:
        """What hides a key in a tensor of which only the mask is made."""
        return None if name not in self.mask_only else -adversary.DEEP if name in self.subtracted else adversary.DEEP

    def _against_exact(
        self,
        trial: adversary.Trial,
        name: str,
        feeds: Arrays,
        want: np.ndarray,
        have: np.ndarray,
        budget: np.ndarray,
        refusal: Refusal,
    ) -> tuple[float, float]:
        """Judges a difference that the bound of the attention alone does not explain.

        A region may compute more than the attention (projections, relative positions), whose rounding the bound does
        not know. So the old region is run in float64: the new one may be off by the bound and twice what the old one
        is off by in the same row, and no more. (Not in rows without keys: deep masks absorb scores in float32 only.)
        """
        try:
            old = self.sides[0]
            wide = to_model(old.cut, old.ends, old.opset, ir.DataType.DOUBLE)
            exact = _session(wide)({n: _in_double(a) for n, a in feeds.items()})[name]
        except (Refusal, RuntimeError):
            raise refusal from None  # not every operator has a float64 kernel: then the bound alone decides
        own = np.abs(want.astype(np.float64) - exact)
        own = np.where(np.isfinite(own), own, 0.0).max(axis=-1, keepdims=True) if own.ndim else own
        limit = budget.reshape(have.shape) if budget.size == have.size else np.broadcast_to(budget, have.shape)
        return self._worst(trial, exact, have, limit + 2.0 * own)

    def _worst(
        self, trial: adversary.Trial, want: np.ndarray, have: np.ndarray, budget: np.ndarray
    ) -> tuple[float, float]:
        """Returns (error, its budget) at the largest error."""
        if want.shape != have.shape:
            raise Refusal("V905", f"'{self.name}' has shape {have.shape}, before {want.shape} ({trial.name}).")
        if have.size == 0:
            return (0.0, 0.0)
        limit = budget.reshape(have.shape) if budget.size == have.size else np.broadcast_to(budget, have.shape)
        silent = np.isnan(want) & (have == 0.0)  # no key: NaN when written by hand, 0 from Attention
        if self.masked_rows == "zero":  # any padding can leave a row of a causal attention without keys
            silent |= np.broadcast_to((have == 0.0).all(axis=-1, keepdims=True), have.shape)
        error = np.where(silent, 0.0, np.abs(want.astype(np.float64) - have))
        if not np.isfinite(error).all():
            raise Refusal("V906", f"'{self.name}' and what it replaced differ in where they are finite ({trial.name}).")
        ratio = error / (limit + _TINY)
        at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if ratio[at] > 1.0:
            raise Refusal(
                "V907",
                f"'{self.name}' differs from what it replaced by {error[at]:.3g} at {[int(i) for i in at]}, "
                f"its budget is {limit[at]:.3g} ({trial.name}).",
            )
        return float(error[at]), float(limit[at])


def _learned(mask: ir.Value) -> bool:
    """Says whether a mask is computed as biases are: it hides no key, however it is drawn."""
    size = bounds.bound(mask)
    return mask.dtype != ir.DataType.BOOL and not size.infinite and size.finite <= bounds.ORDINARY


def _in_double(data: np.ndarray) -> np.ndarray:
    return data.astype(np.float64) if data.dtype == np.float32 else data


LAYOUT = ("Reshape", "Squeeze", "Transpose", "Cast", "Where", "Mul", "Div")
"""What emitting may put between an op and the tensor it stands for."""


def visible(output: ir.Value, old: Mapping[str, ir.Value], through: Sequence[str] = LAYOUT) -> ir.Value | None:
    """Returns the first tensor at or after the op's output that the graph had before, looking through some nodes."""
    current = output
    for _ in range(4):
        if str(current.name) in old:
            return current
        users = [u for u, _ in current.uses() if u.op_type in through]
        if len(users) != 1:
            return None
        current = users[0].outputs[0]
    return None


def _common_cut(new: Sequence[ir.Value], olds: Sequence[ir.Value], before: Before) -> tuple[Cut, Cut]:
    """Cuts both graphs at the same tensors, moving the cut back until the old region needs nothing else."""
    old, free = before.values, before.free
    targets = {str(v.name) for v in new}
    opened: set[str] = set()

    def sized(value: ir.Value) -> bool:
        found = adversary.symbols(value)
        return found is not None and found <= free

    while True:

        def stop(value: ir.Value, opened: frozenset[str] = frozenset(opened)) -> bool:
            name = str(value.name)
            is_data = value.dtype is not None and (value.dtype.is_floating_point() or value.dtype == ir.DataType.BOOL)
            if not is_data or name not in old or name in opened or name in targets or name in before.settled:
                return False
            truth = value.dtype != ir.DataType.BOOL and zero_or_one(old[name])  # no other number may be drawn for it
            return not truth and sized(old[name])

        new_cut = cut(new, stop, sized)
        old_cut = cut(olds, lambda value: str(value.name) in new_cut.leaves, sized)  # noqa: B023
        inside = {str(v.name) for found in (new_cut, old_cut) for node in found.nodes for v in node.outputs}
        if halved := inside & set(new_cut.leaves):  # one output of a node whose other outputs are computed
            opened |= halved
            continue
        extra = set(old_cut.leaves) - set(new_cut.leaves)
        if not extra:
            return new_cut, old_cut
        dependent = {name for name in new_cut.leaves if name in old and extra & set(cut([old[name]], _never).leaves)}
        dependent -= opened | extra
        if not dependent:
            return new_cut, old_cut
        opened |= dependent


def _largest(region: Cut) -> int:
    """Returns the elements of a region's largest tensor; a symbol is as large as it is ever drawn."""
    made = [dims(value) or () for node in region.nodes for value in node.outputs]
    return max(math.prod(d if isinstance(d, int) else adversary.LONGEST for d in shape) for shape in [*made, ()])


def _never(_: ir.Value) -> bool:
    return False
