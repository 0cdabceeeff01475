"""Follows the softmax weights forwards to the product with V."""

from dataclasses import dataclass, replace

import onnx_ir as ir

from export.graph.laws.noops import inactive_dropout
from export.graph.values import Refusal, dims, label, made_by, uniform


@dataclass(frozen=True)
class Weights:
    """The way from a Softmax to `weights @ V`.

    Attributes:
        product: The MatMul with V.
        value: V, [..., T, Dv].
        nodes: The nodes between Softmax and the product, and the product.
        hidden: Conditions under which weights were set to 0 after the softmax: (condition, its truth value that keeps).
        guarded: A NaN row (no key at all) becomes a row of zeros.
        wanted: The weights themselves are used elsewhere too: the tensor that is, or None.
    """

    product: ir.Node
    value: ir.Value
    nodes: tuple[ir.Node, ...] = ()
    hidden: tuple[tuple[ir.Value, bool], ...] = ()
    guarded: bool = False
    wanted: ir.Value | None = None


def follow(softmax: ir.Node) -> Weights:
    """Returns how the weights of `softmax` reach V.

    Raises:
        Refusal: They do not reach one product with V unchanged; the sentence names the node.
    """
    weights = Weights(softmax, softmax.outputs[0])  # placeholders until the product is met
    current = softmax.outputs[0]
    while True:
        users: dict[ir.Node, int] = {}
        for node, index in current.uses():
            users[node] = min(index, users.get(node, index))
        guard = _guard(current, users)
        if guard is not None:
            weights = replace(weights, nodes=(*weights.nodes, *guard), guarded=True)
            current = guard[-1].outputs[0]
            continue
        steps = [node for node, index in users.items() if _continues(node, index, current)]
        if not steps:
            raise _no_product(softmax, current, users)
        if len(steps) > 1:
            products = ", ".join(label(node) for node in steps)
            raise Refusal("K301", f"The weights of {label(softmax)} are used by {products}: one attention has one V.")
        step = steps[0]
        if len(users) > 1 or current.is_graph_output():
            if weights.wanted is not None:
                raise Refusal("K302", f"The weights of {label(softmax)} are wanted at two different stages.")
            weights = replace(weights, wanted=current)
        weights = replace(weights, nodes=(*weights.nodes, step))
        if step.op_type == "MatMul":
            value = step.inputs[1]
            if value is None or value is current:
                raise Refusal("K303", f"{label(step)} multiplies the weights by themselves.")
            return replace(weights, product=step, value=value)
        if step.op_type == "Where":
            condition, chosen, _ = step.inputs
            if condition is None:
                raise Refusal("K199", f"{label(step)} lacks its condition.")
            weights = replace(weights, hidden=(*weights.hidden, (condition, chosen is current)))
        current = step.outputs[0]


def _continues(node: ir.Node, index: int, current: ir.Value) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MatMul":
        return index == 0
    if node.op_type == "Where":
        other = node.inputs[2] if index == 1 else node.inputs[1]
        return index != 0 and uniform(other) == 0.0
    if node.op_type == "Reshape":
        before, after = dims(current), dims(node.outputs[0])
        return index == 0 and before is not None and after is not None and before[-1] == after[-1]
    if node.op_type == "Cast":
        to = node.outputs[0].dtype
        return to is not None and to.is_floating_point()
    return node.op_type == "Identity" or (node.op_type == "Dropout" and index == 0 and inactive_dropout(node))


def _guard(current: ir.Value, users: dict[ir.Node, int]) -> tuple[ir.Node, ir.Node] | None:
    """Finds `Where(IsNaN(p), 0, p)`, where nothing else uses p."""
    if len(users) != 2 or current.is_graph_output():
        return None
    select = next((node for node in users if node.op_type == "Where"), None)
    if select is None or select.inputs[2] is not current or uniform(select.inputs[1]) != 0.0:
        return None
    test = made_by(select.inputs[0], "IsNaN")
    if test is None or test not in users or len(test.outputs[0].uses()) != 1:
        return None
    return test, select


def _no_product(softmax: ir.Node, current: ir.Value, users: dict[ir.Node, int]) -> Refusal:
    if not users:
        return Refusal("K304", f"The result of {label(softmax)} is an output of the graph; no V follows it.")
    names = ", ".join(label(node) for node in users)
    return Refusal("K304", f"The weights of {label(softmax)} go to {names}, not to a product with V.")
