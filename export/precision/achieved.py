"""Whether an engine computes in the precision that was asked for, block by block, and if not, where that comes from.

Engines are strongly typed: a layer runs in the type that its tensors have in the graph. A product in float32 in an
fp16 build is therefore written in the graph, by a Cast or a weight, and can be named.
"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import onnx_ir as ir

from engines.achieved import UNKNOWN
from export.graph.source_lines import source_line
from export.precision import TYPES, angles

if TYPE_CHECKING:
    from export.report.record import Engine

_WIDTH = {dtype: name for name, dtype in TYPES.items()}
_SHOWN = 3


def angle_nodes(model: ir.Model) -> frozenset[str]:
    """Returns the names of the nodes that compute angles, whose products rightly stay in float32."""
    return frozenset(node.name for node in angles.of_graph(model.graph) if node.name)


def causes(model: ir.Model, asked: str, names: Collection[str]) -> dict[str, str]:
    """Returns, for each named Attention (or Softmax) node with operands that are not in the precision asked for, why.

    Args:
        model: The graph the engines were built from.
        asked: "fp32", "fp16" or "bf16".
        names: Names of the nodes.
    """
    found = {}
    for node in model.graph:
        if node.name and node.name in names and (why := _cause(node, asked)):
            found[node.name] = why
    return found


def failures(engines: "Iterable[Engine]", asked: str) -> tuple[str, ...]:
    """Returns a sentence for each attention, and each engine as a whole, that computes in another precision."""
    found = []
    for engine in engines:
        wrong = {n: k for n, k in engine.attentions.items() if k.achieved not in (None, asked)}
        for name, kernel in wrong.items():
            found.append(
                f"{engine.file}: attention {name} computes in {kernel.achieved}, and {asked} was asked for."
                f"{f' {kernel.cause}' if kernel.cause else ''}"
            )
        seen = engine.achieved
        if not wrong and seen.precision != UNKNOWN and asked not in seen.products:
            where = ", ".join(f"{name} ({precision})" for name, precision in seen.others[:_SHOWN])
            found.append(
                f"{engine.file}: none of its matrix products computes in {asked}, which was asked for: {where}. Its "
                "weights or a Cast make them so."
            )
    return tuple(found)


def notes(engines: "Iterable[Engine]", asked: str) -> tuple[str, ...]:
    """Returns a sentence for each engine that computes some products outside its attentions in another precision."""
    found = []
    for engine in engines:
        other = [(name, precision) for name, precision in engine.achieved.others if precision != asked]
        if other and asked in engine.achieved.products:
            where = ", ".join(f"{name} in {precision}" for name, precision in other[:_SHOWN])
            more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
            total = sum(engine.achieved.products.values())
            found.append(
                f"{engine.file}: {len(other)} of {total} matrix products are not in {asked}, as the graph has it: "
                f"{where}{more}."
            )
    return tuple(found)


def apart(engines: "Iterable[Engine]") -> bool:
    """Says whether an engine computes some attention in separate kernels, which store its scores."""
    return any(kernel.fused is False for engine in engines for kernel in engine.attentions.values())


def _cause(node: ir.Node, asked: str) -> str | None:
    """Returns which node makes the operands of an attention wider or narrower than asked."""
    value = next((v for v in node.inputs[:2] if v is not None and v.dtype and _name(v.dtype, asked) != asked), None)
    if value is None or value.dtype is None:
        return None
    wrong = value.dtype
    level, seen = [value], {value}
    while level:
        above = []
        for reached in level:
            maker = reached.producer()
            if maker is None:
                return f"It reads {reached.name!r}, which is {_name(wrong)}; export it in {asked}."
            inputs = [v for v in maker.inputs if v is not None]
            if all(v.dtype != wrong for v in inputs):
                line = source_line(maker)
                where = f" [{line}]" if line else ""
                return (
                    f"Node {maker.name!r} ({maker.op_type}){where} makes it so; cast the queries and keys back to "
                    f"{asked} before their product."
                )
            for v in inputs:
                if v.dtype == wrong and v not in seen and v.const_value is None:
                    seen.add(v)
                    above.append(v)
        level = above
    return None


def _name(dtype: ir.DataType, otherwise: str | None = None) -> str:
    return _WIDTH.get(dtype, otherwise or dtype.name.lower())
