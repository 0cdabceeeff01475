"""The value the reader computes: what the scores under a Softmax are, as an expression in Q and K."""

from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from export.graph.values import Dim


@dataclass(frozen=True)
class Operand:
    """A tensor that enters the fused attention.

    Attributes:
        value: The tensor in the graph, [..., rows, columns].
        swapped: Its last two axes are to be exchanged first.
        factor: A tensor [..., 1 or rows, 1] it is to be multiplied by first, or None.
    """

    value: ir.Value
    swapped: bool = False
    factor: ir.Value | None = None

    def swap(self) -> "Operand":
        """Returns the operand with its last two axes exchanged."""
        return replace(self, swapped=not self.swapped)


@dataclass(frozen=True)
class Stage:
    """One thing done to the scores after scale and softcap, in the order it is done.

    Attributes:
        kind: "add" (plus `value`), "subtract" (minus `value`), "fill" (`fill` where the condition hides the key),
            or "scale" (times `fill`).
        value: The tensor added, or the condition; broadcastable to the scores.
        keep_when: For "fill": the truth value of the condition that keeps the score.
        fill: For "fill" the number written, for "scale" the factor.
        frame: The dimensions of the scores it was applied to.
        reshapes: The shape operands of the Reshapes between the product and there.
    """

    kind: Literal["add", "subtract", "fill", "scale"]
    value: ir.Value | None = None
    keep_when: bool = True
    fill: float = 0.0
    frame: tuple[Dim, ...] = ()
    reshapes: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class Mark:
    """What one tensor between the product and the softmax is: the scores so far.

    Attributes:
        value: The tensor.
        query: Q as it was then.
        scale: The factor on the product then.
        softcap: Whether the softcap was applied.
        stages: How many of the stages were.
        frame: Its dimensions.
    """

    value: ir.Value
    query: Operand
    scale: float
    softcap: bool
    stages: int
    frame: tuple[Dim, ...]


@dataclass(frozen=True)
class Scores:
    """`stages(softcap(scale * query @ key_t))`, with the nodes that compute it.

    Attributes:
        query: [..., S, D].
        key_t: K transposed, [..., D, T].
        scale: Factor on the product, applied before the softcap.
        softcap: c of c*tanh(x/c), or None.
        stages: What is added or filled afterwards, innermost first.
        nodes: The nodes from the base MatMul up to the value read.
        casts: The element types the scores were cast to on the way.
        frame: The dimensions of the product, followed through reshapes; a mask may not widen them.
        reshapes: The shape operands of those Reshapes, innermost first.
        steady: Every one of them kept the last two axes, queries and keys.
        marks: The tensors on the way that are themselves scores, innermost first.
    """

    query: Operand
    key_t: Operand
    scale: float = 1.0
    softcap: float | None = None
    stages: tuple[Stage, ...] = ()
    nodes: tuple[ir.Node, ...] = ()
    casts: tuple[ir.DataType, ...] = ()
    frame: tuple[Dim, ...] = ()
    reshapes: tuple[ir.Value, ...] = ()
    steady: bool = True
    marks: tuple[Mark, ...] = ()

    def marked(self, value: ir.Value) -> "Scores":
        """Returns the same scores, with a note that `value` holds them."""
        mark = Mark(value, self.query, self.scale, self.softcap is not None, len(self.stages), self.frame)
        return replace(self, marks=(*self.marks, mark))

    def through(self, node: ir.Node) -> "Scores":
        """Returns the same scores, one node further."""
        return replace(self, nodes=(*self.nodes, node))

    def times(self, factor: float) -> "Scores":
        """Returns the scores multiplied by a constant: the scale, and everything already added."""
        scaled = replace(self, scale=self.scale * factor)
        return scaled.then(Stage("scale", fill=factor)) if self.stages and factor != 1.0 else scaled

    def then(self, stage: Stage) -> "Scores":
        """Returns the scores with one more stage."""
        return replace(self, stages=(*self.stages, replace(stage, frame=self.frame, reshapes=self.reshapes)))
