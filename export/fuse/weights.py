"""Follows the softmax weights forwards to the product with V.

Every operator that may stand between Softmax and V has one case in `_links`, which says what it does to the weights:
nothing, a change of type or layout, zeros under a condition, a factor. What that means for the fused op is decided
later, with the scores at hand; here a way is only found, and everything beside it is a reader of the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from export.fuse.layout import Layout
from export.fuse.numbers import Range, selects
from export.fuse.scores import Operand
from export.fuse.terms import cut_off
from export.graph.laws.noops import inactive_dropout
from export.graph.values import Refusal, dims, label, uniform

_DEPTH = 24
"""Nodes between Softmax and V beyond which the way is given up; real graphs have fewer than 10."""


@dataclass(frozen=True)
class Link:
    """One step of the weights on their way.

    Attributes:
        node: Its operator.
        before, result: The weights before and after it.
        layout: Where the axes of the weights before it are.
        kind: "same" (numbers in [0, 1] stay; a change of type is the same too), "layout" (axes merged, split or moved),
            "cut" (columns are cut off), "zero" (0 where `value` is `when`), "factor" (times `value`, or divided by it).
        value: The condition or the factor.
        when: For "zero": the truth value that makes a weight 0. For "factor": multiplied, not divided.
        beside: Nodes that compute a condition from the weights themselves.
    """

    node: ir.Node
    before: ir.Value
    result: ir.Value
    layout: Layout
    kind: Literal["same", "layout", "cut", "zero", "factor"]
    value: ir.Value | None = None
    when: bool = True
    beside: tuple[ir.Node, ...] = ()


@dataclass(frozen=True)
class Weights:
    """The way from a Softmax to the product with V.

    Attributes:
        product: The MatMul with V.
        value: V as [..., T, Dv].
        layout: Where the axes of the weights are at the product.
        links: The steps in between.
        turned: The product is V^T P^T, the transpose of what the op gives.
        dropped: How many columns were cut off in front and behind.
        guarded: A NaN row (no key at all) becomes a row of zeros.
        behind: Steps done to whole rows of weights, which are done to the rows of the product instead.
        columns: Steps done to the weights of whole keys, which are done to the rows of V instead.
        absorbed: Nodes of conditions that the op's own meaning makes needless.
        deepened: Steps whose zeros need a deeper mask than the graph's: weights before them are not the op's.
        others: The ways of the same weights to products with other V, each of which becomes an op of its own.
    """

    product: ir.Node
    value: Operand
    layout: Layout
    links: tuple[Link, ...] = ()
    turned: bool = False
    dropped: tuple[int, int] = (0, 0)
    guarded: bool = False
    behind: tuple[Link, ...] = ()
    columns: tuple[Link, ...] = ()
    absorbed: tuple[ir.Node, ...] = ()
    deepened: tuple[Link, ...] = ()
    others: tuple["Weights", ...] = ()

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes between Softmax and the product, and the product."""
        between = [n for link in self.links for n in (*link.beside, link.node)]
        return (*between, self.product)

    @property
    def divided(self) -> bool:
        """Whether rows were divided by what may be 0: a row of zeros is NaN then."""
        divisions = (link for link in self.behind if link.kind == "factor" and not link.when)
        return any(not uniform(link.value) for link in divisions)


@dataclass(frozen=True)
class _Way:
    """A way found so far: where the axes are, its links, the columns cut off, and what the weights can be."""

    layout: Layout
    links: tuple[Link, ...] = ()
    dropped: tuple[int, int] = (0, 0)
    ranges: tuple[tuple[ir.Value, Range], ...] = ()

    def on(self, link: Link, found: Range | None, layout: Layout | None = None) -> "_Way":
        ranges = self.ranges if found is None else (*self.ranges, (link.result, found))
        return replace(self, links=(*self.links, link), ranges=ranges, layout=layout or self.layout)


def follow(softmax: ir.Node, layout: Layout) -> tuple[Weights, ...]:
    """Returns how the weights of `softmax` reach V; exporters let two attentions with the same Q and K share them.

    Args:
        softmax: The Softmax.
        layout: The layout of its scores.

    Raises:
        Refusal: They do not reach a product with V unchanged; the sentence names the node.
    """
    start = softmax.outputs[0]
    found, refusals = _search(softmax, start, _Way(layout, ranges=((start, Range(empty="nan")),)), _DEPTH)
    if len({w.product for w in found}) < len(found):
        products = ", ".join(label(w.product) for w in found)
        raise Refusal("K301", f"The weights of {label(softmax)} reach a product with V on two ways: {products}.")
    if not found:
        raise max(refusals, key=lambda r: (r[1].code != "K304", r[0]))[1]
    return tuple(replace(w, others=tuple(o for o in found if o is not w)) for w in found)


def _search(
    softmax: ir.Node, current: ir.Value, way: _Way, depth: int
) -> tuple[list[Weights], list[tuple[int, Refusal]]]:
    """Returns every way from `current` to a product with V, and after how many steps and why the others end."""
    found: list[Weights] = []
    refusals: list[tuple[int, Refusal]] = []
    for user in dict.fromkeys(node for node, _ in current.uses()):
        try:
            end = _product(softmax, user, current, way)
        except Refusal as refusal:
            refusals.append((len(way.links), refusal))
            continue
        if end is not None:
            found.append(end)
            continue
        try:
            steps = list(_links(user, current, way)) if depth else []
        except Refusal as refusal:
            refusals.append((len(way.links), refusal))
            continue
        for link, after in steps:
            ends, why = _search(softmax, link.result, after, depth - 1)
            found += ends
            refusals += why
    return found, [*refusals, (len(way.links), _no_product(softmax, current))]


def _product(softmax: ir.Node, node: ir.Node, current: ir.Value, way: _Way) -> Weights | None:
    """Reads a MatMul that sums over the keys, with V on either side."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    left, right = node.inputs[:2]
    if left is None or right is None:
        raise Refusal("K199", f"{label(node)} lacks an input that its operator requires.")
    if left is right:
        raise Refusal("K303", f"{label(node)} multiplies the weights by themselves.")
    if not (way.layout.straight if left is current else way.layout.turned):
        if (way.links[0].layout if way.links else way.layout).straight:
            raise Refusal("K306", f"{label(node)} sums the weights over the queries, not over the keys.")
        raise Refusal("K203", f"{label(softmax)} normalises over axes that are not the keys of {label(node)}.")
    last = next((r for v, r in way.ranges if v is current), None)
    guarded = last is not None and last.empty == "zero"
    turned = right is current
    value = Operand(left, swapped=True) if turned else Operand(right)
    return Weights(node, value, way.layout, way.links, turned, way.dropped, guarded)


def _links(node: ir.Node, current: ir.Value, way: _Way) -> Iterator[tuple[Link, _Way]]:
    """Yields the step that an operator is for the weights, if it is one."""
    if node.domain not in ("", "ai.onnx"):
        return
    result, ranges = node.outputs[0], dict(way.ranges)
    known = ranges.get(current)
    first = node.inputs[0] is current
    plain = Link(node, current, result, way.layout, "same")
    if node.op_type == "Cast":
        if result.dtype is not None and result.dtype.is_floating_point():
            yield plain, way.on(plain, known)
    elif node.op_type == "Identity" or (node.op_type == "Dropout" and first and inactive_dropout(node)):
        yield plain, way.on(plain, known)
    elif node.op_type == "Where":
        yield from _selected(node, current, way)
    elif node.op_type in ("Clip", "Max", "Min", "Relu"):
        if known is not None and first and known.kept_by(node):
            yield plain, way.on(plain, known)
    elif node.op_type in ("Mul", "Div"):
        other = node.inputs[1 if first else 0]
        if other is not None and other is not current and (first or node.op_type == "Mul"):
            link = Link(node, current, result, way.layout, "factor", other, node.op_type == "Mul")
            yield link, way.on(link, None)
    elif node.op_type in ("Reshape", "Unsqueeze", "Squeeze") and first:
        link = Link(node, current, result, way.layout, "layout")
        yield link, way.on(link, known, way.layout.reshaped(node))
    elif node.op_type == "Transpose":
        link = Link(node, current, result, way.layout, "layout")
        yield link, way.on(link, known, way.layout.transposed(node))
    elif node.op_type == "Slice" and first and way.layout.straight:
        found, after = cut_off(node), dims(result)
        if found is not None and after is not None:
            link = Link(node, current, result, way.layout, "cut")
            dropped = way.dropped[0] + found[0], way.dropped[1] + found[1]
            yield link, replace(way.on(link, known, way.layout.widened(after[-1])), dropped=dropped)


def _selected(node: ir.Node, current: ir.Value, way: _Way) -> Iterator[tuple[Link, _Way]]:
    """Reads a Where: one that guards against rows without keys, or one that writes zeros under a condition."""
    condition, chosen, otherwise = node.inputs[:3]
    if condition is None or chosen is None or otherwise is None or condition is current or chosen is otherwise:
        return
    result, ranges = node.outputs[0], dict(way.ranges)
    guard = selects(condition, chosen, otherwise, ranges)
    if guard is not None:
        link = Link(node, current, result, way.layout, "same", beside=guard.nodes)
        yield link, way.on(link, guard.result)
        return
    for side, other, when in ((chosen, otherwise, False), (otherwise, chosen, True)):
        if side is current and uniform(other) == 0.0:
            link = Link(node, current, result, way.layout, "zero", condition, when)
            yield link, way.on(link, ranges.get(current))


def _no_product(softmax: ir.Node, current: ir.Value) -> Refusal:
    users = dict.fromkeys(node for node, _ in current.uses())
    if not users:
        return Refusal("K304", f"The result of {label(softmax)} is an output of the graph; no V follows it.")
    names = ", ".join(label(node) for node in users)
    return Refusal("K304", f"The weights of {label(softmax)} go to {names}, not to a product with V.")
