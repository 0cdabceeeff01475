"""Where the axes of QK^T are: the reshapes it went through, then one permutation. Softmax and masks leave it alone.

Scores and weights are one tensor as far as their axes go, so the way from the product to the Softmax and on to V is one
`Layout`; each mask remembers the one it was applied in.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from export.graph.values import Dim, Refusal, dims, integers, label, permutation


@dataclass(frozen=True)
class Layout:
    """A layout of [..., S, T].

    Attributes:
        frames: The dimensions of the product and after each reshape, axes in the product's order.
        targets: The shape operand of each of those reshapes, None where it says the shape relative to what it reshapes.
        perm: Axis i of the tensor is axis perm[i] of the last frame.
    """

    frames: tuple[tuple[Dim, ...], ...] = ((),)
    targets: tuple[ir.Value | None, ...] = ()
    perm: tuple[int, ...] = ()

    @property
    def frame(self) -> tuple[Dim, ...]:
        """The dimensions, axes in the product's order."""
        return self.frames[-1]

    @property
    def here(self) -> tuple[Dim, ...]:
        """The dimensions as the tensor has them."""
        return tuple(self.frame[axis] for axis in self.perm)

    @property
    def straight(self) -> bool:
        """No axis is anywhere else than in the product."""
        return self.perm == tuple(range(len(self.frame)))

    @property
    def turned(self) -> bool:
        """Queries and keys are exchanged and no other axis moved."""
        perm = tuple(range(len(self.frame)))
        return self.perm == (*perm[:-2], *perm[:-3:-1])

    def transposed(self, node: ir.Node) -> "Layout":
        """Returns the layout after a Transpose.

        Raises:
            Refusal: Its permutation is not known.
        """
        perm = permutation(node)
        if perm is None or len(perm) != len(self.perm):
            raise Refusal("K201", f"The shape of {label(node)} is not known, so its axes cannot be told.")
        return replace(self, perm=tuple(self.perm[axis] for axis in perm))

    def reshaped(self, node: ir.Node) -> "Layout":
        """Returns the layout after a Reshape, Unsqueeze or Squeeze that leaves the keys the last axis.

        Raises:
            Refusal: It does not, or the shape is not known.
        """
        before, after = self.here, dims(node.outputs[0])
        if after is None:
            raise Refusal("K114", f"{label(node)} reshapes the scores and its shape is not known.")
        if before == after:
            return self
        if not before or not after or before[-1] != after[-1]:
            raise Refusal("K115", f"{label(node)} reshapes the scores across keys: {list(before)} to {list(after)}.")
        after = self._counted(after)
        if not self.straight:
            raise Refusal("K116", f"{label(node)} reshapes the scores after their axes were moved.")
        target = node.inputs[1] if node.op_type == "Reshape" else None
        if 0 in (integers(target) or ()):
            target = None
        return Layout((*self.frames, after), (*self.targets, target), tuple(range(len(after))))

    def _counted(self, after: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """Returns an earlier frame that differs in one axis only: the number of elements is kept, so it is that."""
        for frame in self.frames:
            if len(frame) == len(after) and sum(a != b for a, b in zip(frame, after, strict=True)) == 1:
                return frame
        return after

    def widened(self, keys: Dim) -> "Layout":
        """Returns the layout with another number of keys."""
        return replace(self, frames=(*self.frames[:-1], (*self.frame[:-1], keys)))


def of_product(frame: tuple[Dim, ...], *, swapped: bool = False) -> Layout:
    """Returns the layout of QK^T itself, or of KQ^T where it is `swapped`, with dimensions as the tensor has them."""
    perm = tuple(range(len(frame)))
    if not swapped:
        return Layout((frame,), (), perm)
    return Layout(((*frame[:-2], frame[-1], frame[-2]),), (), (*perm[:-2], perm[-1], perm[-2]))
