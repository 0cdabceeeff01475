"""Law: an If whose condition is known is the branch it takes.

The TorchScript exporter writes `tile`, `squeeze` and others with an If on the rank of a tensor, which is known.
"""

import onnx_ir as ir

from export.graph.values import array


def choose_branch(graph: ir.Graph) -> int:
    """Puts the branch that is taken in the place of every If of `graph` that always takes it; returns how many."""
    chosen = 0
    for node in list(graph):
        if node.op_type != "If" or node.domain not in ("", "ai.onnx") or not node.inputs:
            continue
        condition = array(node.inputs[0])
        if condition is None or condition.size != 1 or any(v.is_graph_output() for v in node.outputs):
            continue
        taken, dropped = ("then_branch", "else_branch") if condition.item() else ("else_branch", "then_branch")
        branch = node.attributes[taken].as_graph()
        results = list(branch.outputs)
        if any(v.producer() is None for v in results):
            continue
        _move(branch, graph, node)
        for dead in node.attributes[dropped].as_graph().all_nodes():  # else it would still count as a reader
            for at in range(len(dead.inputs)):
                dead.replace_input_with(at, None)
        for old, new in zip(node.outputs, results, strict=True):
            old.replace_all_uses_with(new)
            new.name, old.name = old.name, f"{old.name}/chosen"
        graph.remove(node, safe=True)
        chosen += 1
    return chosen


def _move(branch: ir.Graph, graph: ir.Graph, before: ir.Node) -> None:
    """Moves everything in a branch to where its If stands, under names that begin with the If's."""
    prefix = before.name or str(before.outputs[0].name)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        value.name = f"{prefix}/{name}"
        graph.register_initializer(value)
    for node in list(branch):
        branch.remove(node)
        node.name = f"{prefix}/{node.name}" if node.name else None
        for value in node.outputs:
            value.name = f"{prefix}/{value.name}" if value.name else value.name
        graph.insert_before(before, node)
