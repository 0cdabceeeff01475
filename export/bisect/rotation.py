"""The rotation before Q or K as arrays, so that it can be left out, turned the other way or paired otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from export.graph.values import attribute, made_by

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

ROTARY = "RotaryEmbedding"
ORDERS = ((0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 0, 2, 3))
"""The layouts of [B, H, S, D] that exporters write."""

_LAYOUT = ("Transpose", "Reshape", "Cast", "Identity", "Unsqueeze", "Squeeze")


@dataclass(frozen=True)
class Rotation:
    """The RotaryEmbedding before Q or K.

    Attributes:
        node: The node.
        arrays: Its inputs in float64, positions as they are; None where left out.
        carry: Its output as the operand of the attention, [B, H, S, D].
    """

    node: ir.Node
    arrays: "tuple[Array | None, ...]"
    carry: "Callable[[Array], Array]"

    def turned(self, arrays: "tuple[Array | None, ...] | None" = None, *, other_pairs: bool = False) -> "Array":
        """Returns the operand [B, H, S, D] with other inputs, or with the other pairing of channels."""
        return self.carry(_rotated(self.node, self.arrays if arrays is None else arrays, other_pairs))

    def unturned(self) -> "Array":
        """Returns the operand as it is without the rotation."""
        if self.arrays[0] is None:
            raise ValueError("a rotation without its input")
        return self.carry(self.arrays[0])


def before(value: ir.Value) -> ir.Node | None:
    """Returns the RotaryEmbedding that a value shows, through changes of layout."""
    for _ in range(6):
        node = made_by(value, ROTARY)
        if node is not None:
            return node
        node = made_by(value, *_LAYOUT)
        if node is None or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def carried(node: ir.Node, known: "Mapping[str, Array]", operand: "Array") -> Rotation | None:
    """Returns a rotation with the layout from its output to the operand, found by the numbers."""
    import numpy as np

    def wide(value: ir.Value | None) -> "Array | None":
        if value is None:
            return None
        array = known[str(value.name)]
        return array if array.dtype.kind in "iu" else array.astype(np.float64)

    arrays = tuple(wide(value) for value in node.inputs)
    output = wide(node.outputs[0])
    if output is None:
        return None
    size = operand.shape[-1]
    for order in ORDERS:

        def carry(x: "Array", order: tuple[int, ...] = order) -> "Array":
            four = x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, size)
            return four.transpose(order).reshape(operand.shape)

        if output.size == operand.size and np.array_equal(carry(output), operand):
            return Rotation(node, arrays, carry)
    return None


def _rotated(node: ir.Node, arrays: "tuple[Array | None, ...]", other_pairs: bool) -> "Array":
    """Returns a RotaryEmbedding's output by ONNX's own reference implementation, in float64."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = ["" if array is None else f"x{at}" for at, array in enumerate(arrays)]
    attributes = {name: attribute(node, name, 0) for name in ("interleaved", "num_heads", "rotary_embedding_dim")}
    attributes["interleaved"] ^= int(other_pairs)
    made = onnx.helper.make_node(ROTARY, names, ["y"])
    made.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    given = {name: x for name, x in zip(names, arrays, strict=True) if x is not None}
    results: Any = ReferenceEvaluator(made).run(None, given)
    turned: Array = results[0]
    return turned
