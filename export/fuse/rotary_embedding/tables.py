"""RoPE tables as expressions: two channels of two tables are equal where their expressions are.

A table's channels are followed to what they are computed from: `cos(cat(f, f))` is, on either half, `cos` of `f`. So a
table need not be narrow, nor doubled in a known way: its halves (or its even and odd channels) are compared. What is
common to both is then written once, half as wide; what the graph computes already is used as it is.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from export.fuse.rotary_embedding.channels import Channels, everything, operand, sizes, step
from export.graph.numbers import Numbers, attribute_key
from export.graph.values import array, attribute, dim, dims, integers, permutation, rank, uniform

_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Exp", "Floor", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Pow",
    "Reciprocal", "Sigmoid", "Sin", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip
AROUND = {"Expand", "Gather", "GatherND", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_HASHED = 1 << 23
"""Constants with more elements are not compared by what is in them."""


@dataclass(frozen=True)
class Factor:
    """One factor of a coefficient: channels of a table, or (inverse) one over them."""

    channels: Channels
    inverse: bool = False


@dataclass(frozen=True)
class Product:
    """A number times expressions, each by its id: what a channel is multiplied with. `1 + id` of an inverse is < 0."""

    number: float
    parts: tuple[int, ...]

    @property
    def negated(self) -> "Product":
        """Minus this product."""
        return Product(-self.number, self.parts)

    def times(self, other: "Product", inverse: bool = False) -> "Product":
        """Returns the product with another, or with one over it."""
        parts = tuple(-p for p in other.parts) if inverse else other.parts
        number = self.number / other.number if inverse else self.number * other.number
        return Product(number, tuple(sorted((*self.parts, *parts))))


@dataclass(frozen=True)
class Made:
    """How an expression is computed: a node on some channels of its inputs (an id each) or on a whole input."""

    node: ir.Node
    inputs: tuple[int | ir.Value | None, ...]
    tail: int
    width: int


Recipe = Made | Channels | np.ndarray | tuple[int, ...] | Product
"""How an expression is written: a node again, channels taken, a constant, parts side by side, a product."""


class Tables:
    """Reads the tables of one graph, each once.

    Attributes:
        recipes: How to write each expression.
        known: The tensors that expressions have in the graph already, [.., D/2] or [.., 1].
    """

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._ids: dict[Hashable, int] = {}
        self.recipes: dict[int, Recipe] = {}
        self._read: dict[tuple[Channels, bool], Product] = {}
        self.known: dict[int, ir.Value] = {}

    def product(self, factors: Iterable[Factor]) -> Product:
        """Returns the product of factors; equal ones are equal for every input of the graph."""
        total = Product(1.0, ())
        for factor in factors:
            total = total.times(self.read(factor.channels), factor.inverse)
        return total

    def read(self, channels: Channels, exact: bool = False) -> Product:
        """Returns the expression of some channels of a table.

        Args:
            channels: The channels; where all are one and the same, it stands for all.
            exact: It is an argument of a function: the order of its arithmetic is kept, because the rounding of an
                angle is not that of a factor.
        """
        if len(set(channels.pick)) == 1:
            channels = Channels(channels.value, channels.tail, channels.pick[:1])
        key = (channels, exact)
        if key not in self._read:
            found = self._expression(channels, exact)
            self._read[key] = found
            whole = channels.tail == 1 and channels == everything(channels.value)
            if whole and found.parts:
                self.known.setdefault(self.one(found), channels.value)
        return self._read[key]

    def one(self, product: Product) -> int:
        """Returns the id of a product as one expression."""
        if product.number == 1.0 and len(product.parts) == 1 and product.parts[0] > 0:
            return product.parts[0]
        return self._intern(("product", product), product)

    def _intern(self, key: Hashable, recipe: Recipe) -> int:
        found = self._ids.setdefault(key, len(self._ids) + 1)
        self.recipes.setdefault(found, recipe)
        return found

    def _leaf(self, channels: Channels) -> Product:
        key = ("leaf", self._numbers.of(channels.value), channels.tail, channels.pick)
        return Product(1.0, (self._intern(key, channels),))

    def _expression(self, channels: Channels, exact: bool) -> Product:
        constant = self._constant(channels, exact)
        if constant is not None:
            return constant
        moved = step(channels)
        if moved is not None and len(moved) == 1:
            return self.read(moved[0], exact)
        if moved is not None:
            return self._side_by_side(channels, moved, exact)
        node = channels.value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or attribute_key(node) is None:
            return self._leaf(channels)
        if node.op_type in _ELEMENTWISE:
            return self._elementwise(channels, node, exact)
        if node.op_type in AROUND:
            return self._around(channels, node, exact) or self._leaf(channels)
        if node.op_type in ("MatMul", "Einsum") and channels.tail == 1:
            return self._columns(channels, node)
        return self._leaf(channels)

    def _constant(self, channels: Channels, exact: bool) -> Product | None:
        number = uniform(channels.value)
        if number is not None and not exact and set((dims(channels.value) or ())[: -channels.tail or None]) <= {1}:
            return Product(number, ())
        data = array(channels.value)
        if data is None or data.size > _HASHED or data.ndim < channels.tail or data.dtype.kind not in "fiuV":
            return None
        count = prod(data.shape[data.ndim - channels.tail :])
        part = data.reshape(*data.shape[: data.ndim - channels.tail], count)[..., list(channels.pick)]
        part = np.ascontiguousarray(part)
        if exact or part.size == 0 or data.dtype.kind not in "f":
            return Product(1.0, (self._array(part),))
        first = part.reshape(-1)[0]
        if np.all(part == first) and prod(part.shape[:-1]) == 1:
            return Product(float(first), ())
        signed = part.reshape(-1)
        negative = bool(signed[np.argmax(signed != 0)] < 0)
        return Product(-1.0, (self._array(-part),)) if negative else Product(1.0, (self._array(part),))

    def _array(self, data: np.ndarray) -> int:
        # +0 and -0 are one number: a table's sign is taken out of it, which turns its zeros over
        data = data + np.zeros((), data.dtype) if data.dtype.kind == "f" else data
        return self._intern(("constant", data.dtype.str, data.shape, data.tobytes()), data)

    def _side_by_side(self, channels: Channels, runs: tuple[Channels, ...], exact: bool) -> Product:
        if any(len(set(r.pick)) == 1 and len(r.pick) > 1 for r in runs):
            return self._leaf(channels)
        found = [self.read(run, exact) for run in runs]
        if any(not p.parts for p in found):
            return self._leaf(channels)
        number = found[0].number if len({p.number for p in found}) == 1 else 1.0
        parts = tuple(self.one(p if number == 1.0 else Product(1.0, p.parts)) for p in found)
        return Product(number, (self._intern(("side by side", parts), parts),))

    def _elementwise(self, channels: Channels, node: ir.Node, exact: bool) -> Product:
        given = [operand(channels, v) if v is not None else None for v in node.inputs]
        if any(g is None for g, v in zip(given, node.inputs, strict=True) if v is not None):
            return self._leaf(channels)
        taken = [g for g in given if g is not None]
        if not exact and node.op_type == "Neg":
            return Product(-1.0, ()).times(self.read(taken[0]))
        if not exact and node.op_type in ("Mul", "Div"):
            left, right = self.read(taken[0]), self.read(taken[1])
            if node.op_type == "Mul" or right.number != 0:
                return left.times(right, inverse=node.op_type == "Div")
        sign = 1.0
        inputs: list[int | ir.Value | None] = []
        for channel in given:
            if channel is None:
                inputs.append(None)
                continue
            if node.op_type == "Cast" and not exact and self._rounds(node):
                inner = self.read(channel)
                if abs(inner.number) == 1.0 and inner.parts:  # rounding is the same on either side of zero
                    sign = inner.number
                    inputs.append(self.one(Product(1.0, inner.parts)))
                    continue
            inputs.append(self.one(self.read(channel, exact=True)))
        return Product(sign, (self._made(channels, node, tuple(inputs)),))

    @staticmethod
    def _rounds(node: ir.Node) -> bool:
        types = [v.dtype for v in (node.inputs[0], node.outputs[0]) if v is not None]
        return all(t is not None and t.is_floating_point() for t in types)

    def _made(self, channels: Channels, node: ir.Node, inputs: tuple[int | ir.Value | None, ...]) -> int:
        own = tuple(("whole", self._numbers.of(i)) if isinstance(i, ir.Value) else i for i in inputs)
        attributes = attribute_key(node)
        key = ("made", node.op_identifier(), attributes, own, channels.tail if node.op_type in AROUND else 1)
        return self._intern(key, Made(node, inputs, channels.tail, len(channels.pick)))

    def _around(self, channels: Channels, node: ir.Node, exact: bool) -> Product | None:
        """A node that moves or repeats the other axes and leaves the channels as they are."""
        source, value = node.inputs[0], channels.value
        own = channels.sizes
        shape, out = dims(source), dims(value)
        if source is None or own is None or shape is None or out is None or len(shape) < channels.tail:
            return None
        before = len(shape) - channels.tail
        if shape[before:] != own or not _leaves_channels(node, before, len(out) - channels.tail):
            return None
        inner = self.read(Channels(source, channels.tail, channels.pick), exact)
        if not inner.parts:
            return inner if not exact else None
        whole = tuple(v for v in node.inputs[1:])
        made = self._made(channels, node, (self.one(Product(1.0, inner.parts)), *whole))
        return Product(inner.number, (made,))

    def _columns(self, channels: Channels, node: ir.Node) -> Product:
        """A matrix product's columns are made of the columns of its last factor."""
        at = _columns_of(node)
        source = node.inputs[at] if at is not None else None
        own = sizes(source, 1) if source is not None else None
        if at is None or source is None or own is None or own != channels.sizes:
            return self._leaf(channels)
        inputs: list[int | ir.Value | None] = list(node.inputs)
        inputs[at] = self.one(self.read(Channels(source, 1, channels.pick), exact=True))
        return Product(1.0, (self._made(channels, node, tuple(inputs)),))


def _leaves_channels(node: ir.Node, before: int, after: int) -> bool:
    """Says whether a node touches only the first `before` axes of its source, which become the first `after`."""
    length = rank(node.inputs[0]) or 0
    out = rank(node.outputs[0]) or 0
    if node.op_type == "Gather":
        return attribute(node, "axis", 0) % length < before
    if node.op_type == "GatherND":
        depth = dim(node.inputs[1], -1)
        return isinstance(depth, int) and attribute(node, "batch_dims", 0) + depth <= before
    if node.op_type == "Transpose":
        perm = permutation(node)
        return perm is not None and perm[before:] == tuple(range(before, length))
    if node.op_type == "Slice":
        axes = integers(node.inputs[3]) if len(node.inputs) > 3 else None
        return axes is not None and all(axis % length < before for axis in axes)
    if node.op_type in ("Unsqueeze", "Squeeze"):
        axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
        wide, limit = (out, after) if node.op_type == "Unsqueeze" else (length, before)
        return axes is not None and all(axis % wide < limit for axis in axes)
    if node.op_type == "Reshape":
        # The channels are the same axes of the same sizes, so the others hold as many elements as before; a 0 must
        # not copy the size of the channels.
        literal = integers(node.inputs[1])
        return after <= before or (literal is not None and 0 not in literal[before:])
    return node.op_type == "Expand" and dims(node.inputs[1]) == (out,)


def _columns_of(node: ir.Node) -> int | None:
    """Returns which input of a MatMul or Einsum alone has the last axis of the result, as its own last axis."""
    if node.op_type == "MatMul":
        return 1 if (rank(node.inputs[1]) or 0) > 1 else None
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    operands = terms.split(",")
    found = [at for at, letters in enumerate(operands) if result and result[-1] in letters]
    own = operands[found[0]] if len(found) == 1 and "." not in terms else ""
    return found[0] if own.endswith(result[-1:]) and own.count(result[-1:]) == 1 else None
