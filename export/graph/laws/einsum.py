"""Law: an Einsum of two tensors over one axis is a MatMul between transposes, in whatever order it names its axes."""

import string
from dataclasses import dataclass

import onnx_ir as ir

from export.graph.build import Builder, take_place
from export.graph.values import dims, rank


@dataclass(frozen=True)
class _Equation:
    """The axes of both operands and of the result, one letter each."""

    left: str
    right: str
    result: str


def spell_out_einsum(graph: ir.Graph) -> int:
    """Rewrites every Einsum that is a batched matrix product; returns how many."""
    return sum(_try(node) for node in list(graph) if node.op_type == "Einsum" and node.domain in ("", "ai.onnx"))


def _try(node: ir.Node) -> bool:
    found = _read(node)
    if found is None:
        return False
    left, right, result = found.left, found.right, found.result
    a, b = node.inputs
    shared = [x for x in left if x in right]
    summed = [x for x in shared if x not in result]
    ours, theirs = [x for x in left if x not in right], [x for x in right if x not in left]
    if a is None or b is None or len(summed) != 1 or not ours or not theirs:
        return False
    if set(result) != {*left, *right} - {*summed}:
        return False
    row, column = _matrix_axis(ours, a, left, result), _matrix_axis(theirs, b, right, result)
    batch = sorted({*result} - {row, column}, key=result.index)
    build = Builder(node, node.name or str(node.outputs[0].name))
    first = _arrange(build, a, left, [*batch, row, *summed])
    second = _arrange(build, b, right, [*batch, *summed, column])
    output = build("MatMul", first, second, dtype=node.outputs[0].dtype)
    made = [*batch, row, column]
    if made != list(result):
        output = build("Transpose", output, dtype=output.dtype, perm=[made.index(x) for x in result])
    old = node.outputs[0]
    output.shape = old.shape
    take_place(old, output)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True


def _read(node: ir.Node) -> _Equation | None:
    """Returns a node's equation with the result and every "..." written out, or None where it is no plain one."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    operands, arrow, result = equation.partition("->")
    if len(node.inputs) != 2 or operands.count(",") != 1:
        return None
    left, right = operands.split(",")
    if not arrow:  # the axes named once, in the order of the alphabet
        named = [x for x in left + right if x.isalpha()]
        result = ("..." if "..." in operands else "") + "".join(sorted(x for x in named if named.count(x) == 1))
    if "." in equation:
        hidden = {
            length - len(labels) + 3
            for value, labels in zip(node.inputs, (left, right), strict=True)
            if "..." in labels and (length := rank(value)) is not None
        }
        if len(hidden) != 1:
            return None
        free = "".join(x for x in string.ascii_letters if x not in equation)[: max(hidden)]
        left, right, result = (labels.replace("...", free) for labels in (left, right, result))
    plain = all(x.isalpha() and len(set(x)) == len(x) for x in (left, right, result))
    if not plain or rank(node.inputs[0]) != len(left) or rank(node.inputs[1]) != len(right):
        return None
    return _Equation(left, right, result)


def _matrix_axis(own: list[str], value: ir.Value, labels: str, result: str) -> str:
    """Returns which of the axes that one operand alone has is the matrix's: a length before a known number of heads."""
    last = sorted(own, key=result.index)
    shape = dims(value)
    lengths = [x for x in last if shape is not None and not isinstance(shape[labels.index(x)], int)]
    return (lengths or last)[-1]


def _arrange(build: Builder, value: ir.Value, labels: str, wanted: list[str]) -> ir.Value:
    """Returns a tensor with the wanted axes, 1 where it has none of that name; leading ones are left out."""
    have = [x for x in wanted if x in labels]
    perm = [labels.index(x) for x in have]
    shape = dims(value)
    if perm != list(range(len(perm))):
        shape = None if shape is None else tuple(shape[axis] for axis in perm)
        placed = None if shape is None else ir.Shape(shape)
        value = build("Transpose", value, dtype=value.dtype, shape=placed, perm=perm)
    first = min(wanted.index(x) for x in have)
    missing = [at - first for at, x in enumerate(wanted) if x not in labels and at > first]
    if not missing:
        return value
    if shape is not None:
        sizes = iter(shape)
        shape = tuple(1 if x not in labels else next(sizes) for x in wanted[first:])
    placed = None if shape is None else ir.Shape(shape)
    return build("Unsqueeze", value, build.axes(*missing), dtype=value.dtype, shape=placed)
