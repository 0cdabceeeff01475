"""How far a right answer may be from the float64 one, by the bounds of `export.parity.budgets`: none is chosen here."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from export.bisect.tensors import Tensors
from export.bisect.yardstick import OfGraph
from export.parity.budgets import attention_growth, graph_budget
from export.parity.compare import Expected
from export.parity.precision import precision

FP32 = precision("fp32")


def truth(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[Expected]:
    """Returns what each output of a float32 graph must be: its value in float64, and how far float32 itself is off."""
    tensors = Tensors(model)
    taken = {str(value.name) for value in model.graph.inputs}
    found = OfGraph(tensors, {name: x for name, x in feeds.items() if name in taken}, FP32).expected(tensors.outputs)
    return [found[name] for name in tensors.outputs]


def within(have: np.ndarray, want: Expected) -> np.ndarray:
    """Returns where a float32 output is within its budget, elementwise; nothing is within of NaN."""
    value = want.value.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.abs(have - value) <= graph_budget(value, np.broadcast_to(want.reach, value.shape), FP32)


def is_mean(have: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns where a row is the mean of all values: an attention whose scores are all equal.

    Args:
        have: float32 [..., D].
        values: V, [..., T, D].
    """
    values = values.astype(np.float64)
    sums = np.sqrt(values.shape[-2])  # Q and K play no part: each score is the same number, exactly
    growth = attention_growth("fp32", fused=True, peak=np.zeros(()), sums=np.asarray(sums))
    room = np.abs(values).mean(-2) * np.expm1(growth) + FP32.smallest
    return np.abs(have - values.mean(-2)) <= room
