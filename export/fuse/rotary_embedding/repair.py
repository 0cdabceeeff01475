"""Law: a RotaryEmbedding whose tables (or positions) have batch 1 gets them in the batch of what it rotates.

The standard wants cos and sin [B, S, D/2], or positions [B, S]. PyTorch 2.13 writes the operator itself at opset 23 and
later, for the usual rotate-half, with the [1, S, D/2] that broadcasting made of it: such a graph runs at batch 1 only.
Each table is written out once for all that read it; equal tables computed apart (one for Q, one for K, in each layer)
become one. Tables are expanded, not read by position: the RTX builder folds the Expand into one vectorised kernel for Q
and K, where positions cost it two gathers, and ONNX Runtime's CPU provider takes 0 to 16% longer for positions.
"""

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.numbers import Numbers
from export.graph.values import dim, dims, rank

_INT = ir.DataType.INT64


def repair_rotations(graph: ir.Graph) -> list[ir.Node]:
    """Repairs every RotaryEmbedding of a graph that would run at batch 1 only, in place; returns those."""
    found = [n for n in graph if n.op_type == "RotaryEmbedding" and n.domain in ("", "ai.onnx") and len(n.inputs) > 2]
    numbers, first = Numbers(), dict[int, ir.Value]()
    wide: dict[tuple[int, object], ir.Value] = {}
    repaired = []
    for node in found:
        positions = node.inputs[3] if len(node.inputs) > 3 else None
        for at in (1, 2):
            table = node.inputs[at]
            if table is not None:
                node.replace_input_with(at, first.setdefault(numbers.of(table), table))
        places, length = ((1, 2), 3) if positions is None else ((3,), 2)
        short = [at for at in places if _is_short(node.inputs[0], node.inputs[at], length)]
        build = Builder(node, f"{node.name or node.outputs[0].name}/batch")
        for at in short:
            _widen(build, node, at, numbers, wide)
        if short:
            repaired.append(node)
    return repaired


def _is_short(x: ir.Value | None, rows: ir.Value | None, length: int) -> bool:
    """Says whether rows of a table, or positions, are there for one batch row and x may have more."""
    return rank(rows) == length and dim(rows, 0) == 1 and dim(x, 0) != 1


def _widen(build: Builder, node: ir.Node, at: int, numbers: Numbers, wide: dict[tuple[int, object], ir.Value]) -> None:
    x, rows = node.inputs[0], node.inputs[at]
    if x is None or rows is None:
        return
    batch = dim(x, 0)
    key = (numbers.of(rows), batch if batch is not None else numbers.of(x))
    if key not in wide:
        count = build("Shape", x, dtype=_INT, shape=ir.Shape([1]), start=0, end=1)
        ones = build.axes(*[1] * ((rank(rows) or 1) - 1))
        target = build("Concat", count, ones, dtype=_INT, shape=ir.Shape([rank(rows) or 1]), axis=0)
        shape = ir.Shape([batch, *(dims(rows) or ())[1:]]) if dims(rows) and batch is not None else None
        wide[key] = build("Expand", rows, target, dtype=rows.dtype, shape=shape)
    node.replace_input_with(at, wide[key])
