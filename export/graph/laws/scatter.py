"""Law: a tensor written row by row, all of it, is the rows put together.

`y = new_empty(..); y[..., :n] = a; y[..., n:] = b` is how some attentions put a head's two parts together; the dynamo
exporter writes each assignment as a ScatterND on the first axis, with the tensor transposed there and back.
"""

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import dim, integers, made_by, permutation

_NONE = "none"


def assemble(graph: ir.Graph) -> int:
    """Makes one Concat of ScatterND nodes that write every row of a tensor once; returns how many were made."""
    made = 0
    for node in list(graph):
        if node.op_type != "ScatterND" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        parts = _parts(node)
        if parts is None or any(_continues(node, user) for user, _ in node.outputs[0].uses()):
            continue
        build = Builder(node, node.name or str(node.outputs[0].name))
        node.outputs[0].replace_all_uses_with(_joined(build, parts, node.outputs[0]))
        graph.remove(node, safe=True)
        made += 1
    return made


def _continues(node: ir.Node, user: ir.Node) -> bool:
    """Says whether a user writes more rows over what a node wrote: then the last of them is read, with all its rows."""
    return user.op_type == "ScatterND" and user.inputs[0] is node.outputs[0] and _parts(user) is not None


def _parts(last: ir.Node) -> list[ir.Value] | None:
    """Returns what is written into the rows, in their order, where every row is written just once."""
    rows = dim(last.inputs[0], 0)
    found: dict[int, tuple[int, ir.Value]] = {}
    node: ir.Node | None = last
    written = 0
    while node is not None and isinstance(rows, int):
        data, indices, updates = node.inputs
        at = integers(indices)
        reduction = node.attributes.get("reduction")
        if (reduction is not None and reduction.as_string() != _NONE) or not at or dim(indices, -1) != 1:
            return None
        if at != tuple(range(at[0], at[0] + len(at))) or at[0] < 0 or updates is None or dim(indices, 0) != len(at):
            return None
        if any(at[0] < start + count and start < at[0] + len(at) for start, (count, _) in found.items()):
            return None
        found[at[0]] = (len(at), updates)
        written += len(at)
        if written == rows:
            return [value for _, (_, value) in sorted(found.items(), key=lambda item: item[0])]
        node = made_by(data, "ScatterND")
    return None


def _joined(build: Builder, parts: list[ir.Value], whole: ir.Value) -> ir.Value:
    turns = [made_by(part, "Transpose") for part in parts]
    perms = {permutation(turn) if turn is not None else None for turn in turns}
    perm = next(iter(perms))
    if len(perms) > 1 or perm is None:
        return build("Concat", *parts, dtype=whole.dtype, shape=whole.shape, axis=0)
    sources = [turn.inputs[0] for turn in turns if turn is not None]
    joined = build("Concat", *sources, dtype=whole.dtype, axis=perm[0])
    return build("Transpose", joined, dtype=whole.dtype, shape=whole.shape, perm=perm)
