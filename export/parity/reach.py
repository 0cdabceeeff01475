"""How far PyTorch itself is from float64 at a dtype: the yardstick of a whole graph's budget.

One run is not enough. On a small output PyTorch can be exact by luck, and its fused CPU attention keeps the scores in
float32 where a decomposed graph rightly rounds them. So the reach is the largest error of several honest executions:
PyTorch's own, and runs in which each step's result is moved by up to one unit in the last place
(`export.parity.rounding`). It is taken along the last axis (one token's features, one query's weights), and no row
counts as more exact than the median row: luck is no evidence.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Bools = npt.NDArray[np.bool_]

DRAWS = 8
"""How many moved runs: where a saturated softmax nearly ties, the error of a row hangs on one number, and the largest
of three draws of it is too often small (20 false alarms in 3,789 cases over all forms and dtypes; with eight, none)."""


def reach(
    center: "Array", runs: Sequence["Array"], dead: "Bools | None", other: "Array | None"
) -> "tuple[Array, float]":
    """Returns (elementwise reach, broadcastable to the output; norm of the largest error).

    Args:
        center: The float64 output.
        runs: The same output of each honest execution.
        dead: Elements that depend on the policy for rows that see no key, or None.
        other: What PyTorch gives there; the runs' distance from it counts at those elements, since float64 keeps
            scores that a mask of -1e9 swallows at the dtype under test.
    """
    import numpy as np

    if not runs or not center.size:
        return np.zeros(center.shape), 0.0
    errors = np.stack([_distance(run, center) for run in runs])
    alive = np.ones(center.shape, dtype=bool) if dead is None else ~dead
    living = np.where(alive, errors, 0.0)
    norm = max(float(np.linalg.norm(e)) for e in living)
    result = _rowwise(living.max(axis=0), alive)
    if dead is not None and dead.any():
        near = errors if other is None else np.stack([_distance(run, other) for run in runs])
        result = np.where(dead, _rowwise(np.where(dead, near, 0.0).max(axis=0), dead), result)
    return result, norm


def _distance(run: "Array", center: "Array") -> "Array":
    import numpy as np

    both = np.isfinite(run) & np.isfinite(center)
    with np.errstate(invalid="ignore"):
        return np.where(both, np.abs(run - center), 0.0)


def _rowwise(error: "Array", members: "Bools") -> "Array":
    """Returns each row's largest error, and at least the median row's."""
    import numpy as np

    if error.ndim == 0:
        return error
    rows = error.max(axis=-1, keepdims=True)
    counted = rows[members.any(axis=-1, keepdims=True)]
    return np.broadcast_to(np.maximum(rows, np.median(counted) if counted.size else 0.0), error.shape)
