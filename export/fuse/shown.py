"""Finds what of a block is read elsewhere too, and which output of the op (qk_matmul_output) that is.

The op can give one tensor of its inside: the scores before or after softcap and mask, or the weights. What else of the
block is read elsewhere must follow from that one by nodes of the graph, which then stay; the product of Q and K and the
softmax must go, or nothing was gained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

import onnx_ir as ir

from export.fuse.scores import Mark, Scores
from export.fuse.weights import Weights
from export.graph.values import Refusal, dims, label


@dataclass(frozen=True)
class Shown:
    """The tensor that an output of the op takes the place of.

    Attributes:
        value: The tensor in the graph.
        mode: The op's qk_matmul_output_mode.
        factor: What the output is to be multiplied by.
    """

    value: ir.Value
    mode: int
    factor: float = 1.0


def shown(softmax: ir.Node, scores: Scores, weights: Weights, order: Mapping[ir.Node, int]) -> Shown | None:
    """Returns what is read elsewhere too, or None where nothing is.

    Raises:
        Refusal: More is read elsewhere than one output can show.
    """
    inside = {*scores.nodes, softmax, *weights.nodes, *weights.absorbed, *(n for o in weights.others for n in o.nodes)}
    entering = _entering(scores, weights)
    for node in scores.nodes:
        if node.outputs[0] in entering:
            raise Refusal(
                "K210", f"The scores are used elsewhere: '{node.outputs[0].name}' of {label(node)} is read twice."
            )
    _check_tests(weights, inside)
    if weights.others:
        _check_others(softmax, weights, order)
    products = (weights.product, *(o.product for o in weights.others))
    inner = () if weights.others else (*_of_weights(softmax, scores, weights), *_of_scores(scores, weights))
    for candidate in (None, *inner):
        dies = _Dies(inside, products, None if candidate is None else candidate.value)
        if not (dies.node(softmax) and dies.node(scores.nodes[0])):
            continue
        if candidate is not None:
            back = _comes_back({*inside, *scores.nodes}, entering, scores.nodes[0], order)
            if candidate.mode != 3 and (back is not None or _feeds_another(candidate.value, inside)):
                break
            if back is not None:
                raise Refusal(
                    "K303",
                    f"What enters the attention depends on '{candidate.value.name}' inside it, at {label(back)}.",
                )
        return candidate
    raise _read_elsewhere(softmax, scores, weights, inside)


class _Dies:
    """Which nodes of a block nobody needs any more once ops stand in place of the products with V."""

    def __init__(self, inside: set[ir.Node], products: tuple[ir.Node, ...], replaced: ir.Value | None) -> None:
        self._inside, self._replaced = inside, replaced
        self._known = dict.fromkeys(products, True)

    def node(self, node: ir.Node) -> bool:
        if node not in self._known:
            self._known[node] = node in self._inside and all(self._value(v) for v in node.outputs)
        return self._known[node]

    def _value(self, value: ir.Value) -> bool:
        if value is self._replaced:
            return True
        return not value.is_graph_output() and all(self.node(user) for user, _ in value.uses())


def _of_weights(softmax: ir.Node, scores: Scores, weights: Weights) -> Iterator[Shown]:
    """Yields the weights at the steps where they are what the op gives, the latest first."""
    shape = dims(softmax.outputs[0])
    if shape is None or not scores.layout.straight or weights.dropped != (0, 0):
        return
    found, whole = [softmax.outputs[0]], True
    moved = {*weights.behind, *weights.columns}
    for link in weights.links:
        whole = whole and link.kind != "layout" and link not in moved
        if any(deep.node is link.node for deep in weights.deepened):
            found = []
        if whole:
            found.append(link.result)
    for value in reversed(found):
        yield Shown(value, 3)


def _of_scores(scores: Scores, weights: Weights) -> Iterator[Shown]:
    """Yields the scores at the steps where they are what the op gives, the latest first."""
    for mark in reversed(scores.marks):
        widened = any(stage.kind == "sink" for stage in scores.stages)
        factored = mark.factors == len(scores.factors)
        if mark.layout == scores.layout and mark.layout.straight and factored and scores.scale and not widened:
            mode = None if mark.stages and weights.deepened else _mode(mark, scores)
            if mode is not None:
                yield Shown(mark.value, mode, 1.0 if mode else mark.scale / scores.scale)


def _mode(mark: Mark, scores: Scores) -> int | None:
    if not mark.stages:
        return 0 if mark.softcap is None else 1 if mark.softcap == scores.softcap else None
    whole = mark.stages == len(scores.stages) and mark.scale == scores.scale
    whole = whole and mark.value.dtype == scores.query.value.dtype  # the op adds its mask in its own type
    exact = all(stage.kind in ("add", "subtract", "scale") or stage.fill == -inf for stage in scores.stages)
    return 2 if whole and exact and not scores.layout.targets else None


def _check_tests(weights: Weights, inside: set[ir.Node]) -> None:
    """A test for rows without keys that others read would say something else once such rows are zeros."""
    for link in weights.links:
        for node in link.beside:
            for output in node.outputs:
                outside = [user for user, _ in output.uses() if user not in inside]
                if outside or output.is_graph_output():
                    raise Refusal(
                        "K305", f"{label(node)} tests the weights for rows without keys and is read elsewhere."
                    )


def _check_others(softmax: ir.Node, weights: Weights, order: Mapping[ir.Node, int]) -> None:
    """Products that share the weights become ops of their own: nothing may lead from one to another."""
    ways = (weights, *weights.others)
    entering = [value for way in ways for value in (way.value.value, *(link.value for link in way.links)) if value]
    back = _comes_back({softmax, *(node for way in ways for node in way.nodes)}, entering, softmax, order)
    if back is not None:
        raise Refusal(
            "K301",
            f"The weights of {label(softmax)} are used by {', '.join(label(way.product) for way in ways)}, "
            f"and what enters one of them depends on {label(back)}.",
        )


def _entering(scores: Scores, weights: Weights) -> list[ir.Value]:
    """Returns what enters the op besides Q and K."""
    entering = [stage.value for stage in scores.stages] + [link.value for link in weights.columns]
    return [v for v in (*entering, *(f.value for f in scores.factors), weights.value.value) if v is not None]


def _comes_back(
    block: set[ir.Node], entering: list[ir.Value], first: ir.Node, order: Mapping[ir.Node, int]
) -> ir.Node | None:
    """Returns a node of the block on which something that enters the op depends, or None."""
    start = order.get(first, 0)
    waiting, seen = list(entering), set[ir.Node]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen or order.get(node, start) < start:
            continue
        if node in block:
            return node
        seen.add(node)
        waiting += [v for v in node.inputs if v is not None]
    return None


def _feeds_another(scores: ir.Value, inside: set[ir.Node]) -> bool:
    """Says whether the scores go on to another softmax or product: then they are not just shown."""
    waiting, seen = [scores], set[ir.Node]()
    while waiting and len(seen) < 64:
        for user, _ in waiting.pop().uses():
            if user not in inside and user not in seen:
                seen.add(user)
                waiting += user.outputs
    return any(node.op_type in ("Softmax", "LogSoftmax", "MatMul", "Attention") for node in seen)


def _read_elsewhere(softmax: ir.Node, scores: Scores, weights: Weights, inside: set[ir.Node]) -> Refusal:
    between = [link.node for link in weights.links]
    outside: list[tuple[ir.Node, str, ir.Value]] = []
    for node in (*scores.nodes, softmax, *between):
        for output in node.outputs:
            users = [label(user) for user, _ in output.uses() if user not in inside]
            if users or output.is_graph_output():
                outside.append((node, users[0] if users else "the graph's outputs", output))
    if not outside:
        return Refusal("K210", f"The scores of {label(softmax)} are used elsewhere.")
    node, user, output = outside[0]
    if node in (softmax, *between):
        return Refusal(
            "K302",
            f"The weights of {label(softmax)} are wanted as '{output.name}' by {user}, a stage the op does not give.",
        )
    return Refusal("K210", f"The scores are used elsewhere: {user} reads '{output.name}' of {label(node)}.")
