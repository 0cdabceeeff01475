"""The value the reader computes: what the scores under a Softmax are, as an expression in Q and K."""

from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

from export.fuse.layout import Layout


@dataclass(frozen=True)
class Operand:
    """A tensor that enters the fused attention, [..., rows, columns], after its last two axes exchange if `swapped`."""

    value: ir.Value
    swapped: bool = False

    def swap(self) -> "Operand":
        """Returns the operand with its last two axes exchanged."""
        return replace(self, swapped=not self.swapped)


@dataclass(frozen=True)
class Stage:
    """One thing done to the scores, in the order it is done.

    Attributes:
        kind: "add" (plus `value`), "subtract" (minus `value`), "fill" (`fill` where the condition hides the key),
            "scale" (times `fill`), "floor" (`fill` where the score is less), "shift" (less a number of the row's own,
            which no softmax sees) or "sink" (the columns `value` beside the keys).
        value: The tensor added, the condition, or the columns; broadcastable to the scores.
        keep_when: For "fill": the truth value of the condition that keeps the score. For "sink": it is behind the keys.
        fill: For "fill", "floor" and a constant "sink" the number written, for "scale" the factor.
        width: For "sink" the number of columns.
        layout: The layout of the scores it was applied to.
    """

    kind: Literal["add", "subtract", "fill", "scale", "floor", "shift", "sink"]
    value: ir.Value | None = None
    keep_when: bool = True
    fill: float = 0.0
    width: int = 0
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True)
class Factor:
    """A tensor that multiplies (or divides) the product, constant along the keys or along the queries."""

    value: ir.Value
    divides: bool
    of_keys: bool
    layout: Layout


@dataclass(frozen=True)
class Mark:
    """What one tensor between the product and the softmax is: the scores so far.

    Attributes:
        value: The tensor.
        scale: The constant factor on the product then.
        factors: How many of the tensors that multiply it were applied.
        softcap: The softcap then, or None.
        stages: How many of the stages were.
        layout: Where its axes are.
    """

    value: ir.Value
    scale: float
    factors: int
    softcap: float | None
    stages: int
    layout: Layout


@dataclass(frozen=True)
class Scores:
    """`stages(softcap(scale * factors * query @ key_t))`, with the nodes that compute it.

    Attributes:
        query: [..., S, D].
        key_t: K transposed, [..., D, T].
        scale: Constant factor on the product, applied before the softcap.
        factors: The factors on the product that are tensors.
        softcap: c of c*tanh(x/c), or None.
        stages: What is added or filled afterwards, innermost first.
        nodes: The nodes from the base MatMul up to the value read.
        casts: The element types the scores were cast to on the way.
        layout: Where the product's axes are by now.
        marks: The tensors on the way that are themselves scores, innermost first.
    """

    query: Operand
    key_t: Operand
    layout: Layout
    scale: float = 1.0
    factors: tuple[Factor, ...] = ()
    softcap: float | None = None
    stages: tuple[Stage, ...] = ()
    nodes: tuple[ir.Node, ...] = ()
    casts: tuple[ir.DataType, ...] = ()
    marks: tuple[Mark, ...] = ()

    def marked(self, value: ir.Value) -> "Scores":
        """Returns the same scores, with a note that `value` holds them."""
        mark = Mark(value, self.scale, len(self.factors), self.softcap, len(self.stages), self.layout)
        return replace(self, marks=(*self.marks, mark))

    def through(self, *nodes: ir.Node) -> "Scores":
        """Returns the same scores, some nodes further."""
        return replace(self, nodes=(*self.nodes, *nodes))

    def times(self, factor: float) -> "Scores":
        """Returns the scores multiplied by a constant: f * c*tanh(x/c) is the cap f*c of f*x, and all that is added."""
        cap = None if self.softcap is None else self.softcap * abs(factor)
        scaled = replace(self, scale=self.scale * factor, softcap=cap)
        return scaled.then(Stage("scale", fill=factor)) if self.stages and factor != 1.0 else scaled

    def then(self, stage: Stage) -> "Scores":
        """Returns the scores with one more stage."""
        return replace(self, stages=(*self.stages, replace(stage, layout=self.layout)))
