"""One output against its float64 truth: what is wrong with it, by how much, and where.

numpy only.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.parity.budgets import graph_budget, graph_budget_norm
from export.parity.precision import Precision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    AnyArray = npt.NDArray[np.generic]
    Bools = npt.NDArray[np.bool_]

BLUNT = 0.5


@dataclass(frozen=True)
class Expected:
    """What one output must be.

    Attributes:
        name: The output's name.
        dtype: numpy or ml_dtypes name of the type that PyTorch returns at the dtype under test.
        value: float64; for integers and bools the exact values.
        reach: PyTorch's own error at that dtype, broadcastable to `value`; unused for integers and bools.
        reach_norm: Its Frobenius norm.
        dead: Elements that depend on the policy for rows that see no key; None where there are none.
        other: float64; at `dead` elements a second right answer: what PyTorch gives at that dtype (an added -1e9
            swallows the scores there and not in float64), or zero weights instead of NaN; None where there is none.
        unabsorbed: float64; what all `dead` elements may be together where a runtime adds half-precision fills to
            scores that it keeps in float32; None where it may not.
        unabsorbed_reach: As `reach`, of that answer.
    """

    name: str
    dtype: str
    value: "AnyArray"
    reach: "Array | float" = 0.0
    reach_norm: float = 0.0
    dead: "Bools | None" = None
    other: "Array | None" = None
    unabsorbed: "Array | None" = None
    unabsorbed_reach: "Array | float" = 0.0


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison; the fields are those of `ParityRow`."""

    ok: bool
    output: str
    max_error: float | None = None
    budget: float | None = None
    ratio: float | None = None
    worst: tuple[int, ...] | None = None
    expected: float | None = None
    actual: float | None = None
    reason: str = ""


def compare(actual: "AnyArray", expected: Expected, dtype: Precision) -> Verdict:
    """Returns whether an output is right within its budget.

    Shape and dtype must be PyTorch's; integers and bools equal; NaN and Inf exactly where float64 has them (Inf also
    where the right value is beyond the dtype's range); every other element, and their norm, within budget.
    """
    name = expected.name
    if actual.shape != expected.value.shape:
        wanted = list(expected.value.shape)
        return Verdict(False, name, reason=f"{name} has shape {list(actual.shape)}; PyTorch returns {wanted}.")
    if actual.dtype.name != expected.dtype:
        return Verdict(False, name, reason=f"{name} is {actual.dtype.name}; PyTorch returns {expected.dtype}.")
    if not actual.size:
        return Verdict(True, name, 0.0, 0.0, 0.0, reason=f"{name} is empty: there was nothing to compare.")
    if expected.value.dtype.kind in "biu":
        return _exact(actual, expected)
    return _within(actual, expected, dtype)


def _exact(actual: "AnyArray", expected: Expected) -> Verdict:
    import numpy as np

    different = np.atleast_1d(actual != expected.value)
    if not different.any():
        return Verdict(True, expected.name, 0.0, 0.0, 0.0)
    error = np.abs(actual.astype(np.float64) - expected.value.astype(np.float64))
    index = _index(different, actual.shape)
    want, got = float(expected.value[index]), float(actual[index])
    reason = (
        f"{int(different.sum())} of {actual.size} elements of {expected.name} differ; {actual.dtype} must be equal."
    )
    return Verdict(False, expected.name, float(error.max()), 0.0, float("inf"), index, want, got, reason)


def _within(actual: "AnyArray", expected: Expected, dtype: Precision) -> Verdict:
    import numpy as np

    got, want = actual.astype(np.float64), expected.value.astype(np.float64)
    reach = np.broadcast_to(np.asarray(expected.reach, dtype=np.float64), want.shape)
    error, budget, misplaced = _elements(got, want, reach, dtype)
    replaced = False
    if expected.dead is not None and expected.other is not None:
        error2, budget2, misplaced2 = _elements(got, expected.other, reach, dtype)
        other = expected.dead & (error2 / budget2 < error / budget)
        replaced = bool((other & np.isnan(want)).any())
        want = np.where(other, expected.other, want)
        error, budget = np.where(other, error2, error), np.where(other, budget2, budget)
        misplaced = np.where(other, misplaced2, misplaced)
    kept = False
    if expected.dead is not None and expected.unabsorbed is not None and (error > budget)[expected.dead].any():
        far = np.broadcast_to(np.asarray(expected.unabsorbed_reach, dtype=np.float64), want.shape)
        error3, budget3, misplaced3 = _elements(got, expected.unabsorbed, far, dtype)
        kept = bool((error3 <= budget3)[expected.dead].all())
        if kept:
            dead = expected.dead
            want = np.where(dead, expected.unabsorbed, want)
            error, budget = np.where(dead, error3, error), np.where(dead, budget3, budget)
            misplaced = np.where(dead, misplaced3, misplaced)
    ratio = np.asarray(error / budget)
    index = _index(ratio == ratio.max(), got.shape)
    finite = error[np.isfinite(error)]
    alive = np.isfinite(want) & np.isfinite(got) & (True if expected.dead is None else ~expected.dead)
    norm = float(np.linalg.norm(error[alive]))
    allowed = graph_budget_norm(want[alive], expected.reach_norm, dtype) or dtype.smallest
    reason = _misplaced(misplaced, got, want, dtype, expected.name)
    over = int((ratio > 1).sum())
    if not reason and over:
        reason = f"{over} of {ratio.size} elements of {expected.name} lie outside their budget."
    if reason and expected.dead is not None and not (np.asarray(ratio > 1) & ~expected.dead).any():
        reason += " All of them are in rows that see no key: they do not follow the declared policy."
    if not reason and norm > allowed:
        reason = f"{expected.name} is off as a whole: its error has norm {norm:.3g}, of which {allowed:.3g} is allowed."
    ok = not reason
    if ok and kept:
        reason = (
            f"Rows of {expected.name} that see no key follow their scores here: ONNX Runtime's CPU adds the mask's "
            f"{dtype.storage} fill in float32, where it does not swallow them as in PyTorch."
        )
    elif ok and replaced:
        reason = f"Rows of {expected.name} that see no key are NaN in PyTorch and were computed with zero weights here."
    elif ok and alive.any() and float(np.median(budget[alive])) > BLUNT * float(np.std(want[alive])) > 0:
        reason = f"{dtype.name} itself is this coarse here: the budget is over half of {expected.name}'s variation."
    return Verdict(
        ok,
        expected.name,
        float(finite.max(initial=0.0)),
        float(budget[index]),
        max(float(ratio[index]), norm / allowed),
        index,
        float(want[index]),
        float(got[index]),
        reason,
    )


def _elements(got: "Array", want: "Array", reach: "Array", dtype: Precision) -> "tuple[Array, Array, Bools]":
    """Returns error and budget of each element, and where one of the two is NaN or Inf and the other is not."""
    import numpy as np

    budget = graph_budget(want, reach, dtype)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    # Rounded to this dtype, a value past its largest number is Inf; near it, either is right.
    past = np.isfinite(want) & (np.abs(want) + budget > dtype.largest)
    overflow = past & np.isinf(got) & (np.sign(got) == np.sign(want))
    misplaced = (~np.isfinite(got) | ~np.isfinite(want)) & ~same & ~overflow
    with np.errstate(invalid="ignore"):
        error = np.where(same | overflow, 0.0, np.where(misplaced, np.inf, np.abs(got - want)))
    return error, budget, misplaced


def _misplaced(misplaced: "Bools", got: "Array", want: "Array", dtype: Precision, name: str) -> str:
    import numpy as np

    if not misplaced.any():
        return ""
    count, of = int(misplaced.sum()), misplaced.size
    values = got[misplaced]
    if np.isfinite(want[misplaced]).all():
        what = "NaN" if np.isnan(values).all() else "Inf" if np.isinf(values).all() else "NaN or Inf"
        hint = f"; {dtype.storage} ends at {dtype.largest:.5g}" if dtype.name == "fp16" else ""
        return f"{name} is {what} at {count} of {of} elements where float64 is finite{hint}."
    return f"NaN and Inf of {name} are in other places than in float64, at {count} of {of} elements."


def _index(where: "Bools", shape: tuple[int, ...]) -> tuple[int, ...]:
    import numpy as np

    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), shape)) if shape else ()
