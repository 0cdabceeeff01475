"""The report rows of a graph's rotations: each RotaryEmbedding, and each rotation that is none."""

from collections.abc import Collection, Mapping

import onnx_ir as ir

from export.fuse.describe import nearest
from export.fuse.rows import Rotation, Verification
from export.graph.source_lines import source_line
from export.graph.values import Refusal, dim, graphs, label
from export.rules import rule


def describe_rotations(
    model: ir.Model,
    written: Collection[str],
    repaired: Collection[str],
    kept: Mapping[ir.Node, Refusal],
    verified: Mapping[str, Verification],
) -> tuple[Rotation, ...]:
    """Returns a row for each RotaryEmbedding in graph order, and last the rotations that stay.

    Args:
        model: The graph as it is handed out.
        written: Names of the ops that this run wrote.
        repaired: Names of the ops that were there and are repaired.
        kept: Why rotations stay, by the node that completes each.
        verified: What the verification measured, by the name of an op.
    """
    rows = []
    for graph in graphs(model):
        for node in graph:
            if node.op_type != "RotaryEmbedding" or node.domain not in ("", "ai.onnx", "com.microsoft"):
                continue
            name = node.name or ""
            if name in written:
                status, code, reason = "fused", "R001", "A rotation became one op."
            elif name in repaired:
                status, code = "repaired", "R003"
                reason = "It was one op that runs at batch 1 only; its tables are written out for every batch row."
            else:
                status, code, reason = "already", "R002", "It was one op on arrival."
            rows.append(_row(node, status, code, reason, verified.get(name)))
    return (*rows, *(_kept(node, refusal) for node, refusal in kept.items()))


def _row(node: ir.Node, status: str, code: str, reason: str, verification: Verification | None) -> Rotation:
    given = {name: int(a.value) for name, a in node.attributes.items() if a.type == ir.AttributeType.INT}
    half = dim(node.inputs[1], -1) if len(node.inputs) > 1 else None
    return Rotation(
        name=node.name or "",
        status=status,
        code=code,
        reason=reason,
        op=f"{node.domain or 'ai.onnx'}::{node.op_type}",
        pairing="interleaved" if given.get("interleaved") else "half",
        width=2 * half if isinstance(half, int) else None,
        source=source_line(node),
        verify=verification,
    )


def _kept(node: ir.Node, refusal: Refusal) -> Rotation:
    return Rotation(
        name=node.name or str(node.outputs[0].name),
        status="kept",
        code=refusal.code,
        reason=refusal.sentence,
        op=node.op_type,
        source=source_line(node),
        change=rule(refusal.code).change,
    )


def unread(attention: ir.Node, kept: Mapping[ir.Node, Refusal]) -> list[str]:
    """Returns what to add to the reason of an attention whose Q or K is rotated by what is no RotaryEmbedding."""
    found = {
        letter: node
        for letter, value in zip("QK", attention.inputs[:2], strict=False)
        if value is not None and (node := nearest(value, lambda n: n in kept)) is not None
    }
    if not found:
        return []
    node = next(iter(found.values()))
    return [f"the rotation of {' and '.join(found)} stays as it is: {kept[node].code} at {label(node)}"]
