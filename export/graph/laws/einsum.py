"""Law: an Einsum of two tensors over one axis is a MatMul between transposes, in whatever order it names its axes."""

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import dims


def spell_out_einsum(graph: ir.Graph) -> int:
    """Rewrites every Einsum that is a batched matrix product; returns how many."""
    return sum(_try(node) for node in list(graph) if node.op_type == "Einsum" and node.domain in ("", "ai.onnx"))


def _try(node: ir.Node) -> bool:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if len(node.inputs) != 2 or "." in equation or "->" not in equation:
        return False
    operands, result = equation.split("->")
    left, right = operands.split(",")
    a, b = node.inputs
    if a is None or b is None or any(len(set(labels)) != len(labels) for labels in (left, right, result)):
        return False
    shared = [x for x in left if x in right]
    batch = [x for x in shared if x in result]
    summed = [x for x in shared if x not in result]
    rows = [x for x in left if x not in right]
    columns = [x for x in right if x not in left]
    if not len(summed) == len(rows) == len(columns) == 1 or set(result) != {*batch, *rows, *columns}:
        return False
    batch.sort(key=result.index)
    build = Builder(node, node.name or str(node.outputs[0].name))
    first = _arrange(build, a, left, [*batch, *rows, *summed])
    second = _arrange(build, b, right, [*batch, *summed, *columns])
    product = build("MatMul", first, second, dtype=node.outputs[0].dtype)
    made = [*batch, *rows, *columns]
    output = product
    if made != list(result):
        output = build("Transpose", product, dtype=product.dtype, perm=[made.index(x) for x in result])
    old = node.outputs[0]
    output.shape = old.shape
    take_place(old, output)
    graph = node.graph
    if graph is not None:
        graph.remove(node, safe=True)
    return True


def _arrange(build: Builder, value: ir.Value, labels: str, wanted: list[str]) -> ir.Value:
    perm = [labels.index(x) for x in wanted]
    if perm == list(range(len(perm))):
        return value
    shape = dims(value)
    placed = None if shape is None else ir.Shape([shape[axis] for axis in perm])
    return build("Transpose", value, dtype=value.dtype, shape=placed, perm=perm)
