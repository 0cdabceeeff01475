"""Law: a Transpose of the last two axes is the same inside merged leading axes as outside them.

`reshape(transpose(reshape(x, [B*H, T, D]), 0, 2, 1), [B, H, D, T]) == transpose(x, 0, 1, 3, 2)`: exporters write K's
transpose so where they merge the heads for a batched product.
"""

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import dims, made_by, permutation


def turn_outside(graph: ir.Graph) -> int:
    """Takes such Transposes out of the two Reshapes around them; returns how many."""
    turned = 0
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        inside = made_by(node.inputs[0], "Transpose")
        merge = made_by(inside.inputs[0], "Reshape") if inside is not None else None
        if inside is None or merge is None or permutation(inside) != (0, 2, 1):
            continue
        source, result = merge.inputs[0], node.outputs[0]
        shape, merged = dims(source), dims(merge.outputs[0])
        if source is None or shape is None or merged is None or len(shape) < 3 or merged[-2:] != shape[-2:]:
            continue
        if dims(result) != (*shape[:-2], shape[-1], shape[-2]):
            continue
        build = Builder(node, node.name or str(result.name))
        axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        take_place(result, build("Transpose", source, dtype=result.dtype, shape=result.shape, perm=axes))
        graph.remove(node, safe=True)
        turned += 1
    return turned
