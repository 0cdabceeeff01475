"""What stands between the op and the tensor that is compared, and what that does to an error bound."""

import numpy as np
import onnx_ir as ir

from export.fuse.proof.compare import LAYOUT
from export.fuse.proof.running import Arrays
from export.graph.values import array, permutation

_TINY = 1e-30


class Way:
    """The nodes from an output of the op to a tensor at or after it.

    Args:
        start: The op's output.
        end: The tensor; None where there is none, which gives an empty way.
    """

    def __init__(self, start: ir.Value, end: ir.Value | None) -> None:
        self._steps: list[tuple[ir.Node, tuple[ir.Value, ...]]] = []
        current = start
        while end is not None and current is not end:
            node = next(user for user, _ in current.uses() if user.op_type in LAYOUT)
            others = tuple(v for v in node.inputs if v is not None and v is not current)
            self._steps.append((node, others))
            current = node.outputs[0]

    @property
    def factors(self) -> list[ir.Value]:
        """What the output is multiplied with or divided by, where that is no constant."""
        return [v for node, others in self._steps if node.op_type in ("Mul", "Div") for v in others if array(v) is None]

    def carry(self, bound: np.ndarray, known: Arrays) -> np.ndarray:
        """Returns the bound of the output as the bound of the tensor at the end.

        Args:
            bound: One number for each element of the op's output.
            known: The arrays of `factors` by name.
        """
        for at, (node, others) in enumerate(self._steps):
            if node.op_type == "Transpose":
                perm = permutation(node)
                fits = perm is not None and len(perm) == bound.ndim
                bound = bound.transpose(perm) if fits else _largest(bound)
            elif node.op_type == "Reshape" and at + 1 < len(self._steps):
                bound = _largest(bound)  # where each element goes is known at the end alone
            elif node.op_type in ("Mul", "Div"):
                data = array(others[0])
                size = np.abs((known[str(others[0].name)] if data is None else data).astype(np.float64))
                largest = size.max(initial=0.0) if node.op_type == "Mul" else 1.0 / max(size.min(initial=1.0), _TINY)
                bound = bound * largest
        return bound


def _largest(bound: np.ndarray) -> np.ndarray:
    return np.asarray(bound.max(initial=0.0))
