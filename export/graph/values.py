"""Facts about the values of an ONNX graph: the questions every other file of the fuser asks."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

Dim = int | str

_STANDARD = ("", "ai.onnx")
_WITHOUT_GRAPHS = {"Constant", "Add", "Mul", "MatMul", "Reshape", "Gather", "Concat", "Unsqueeze", "Shape", "Transpose"}
"""The operators that most nodes are: no need to look for graphs in their attributes."""

_UNIFORM_LIMIT = 1 << 22
"""Constants with more elements than this are weights, not fills or scales; they are not scanned."""


class Refusal(Exception):
    """Why an attention stays decomposed: a stable rule code and one sentence that names the node."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """Returns the node that makes `value` if it is a standard operator named in `ops`."""
    node = value.producer() if value is not None else None
    if node is not None and node.domain in _STANDARD and node.op_type in ops:
        return node
    return None


def label(node: ir.Node) -> str:
    """Returns how messages name a node: its operator and its name."""
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"


def inputs_of(node: ir.Node, count: int) -> tuple[ir.Value, ...]:
    """Returns the first `count` inputs of a node whose operator requires them."""
    found = tuple(v for v in node.inputs[:count] if v is not None)
    if len(found) != count:
        raise Refusal("K199", f"{label(node)} lacks an input that its operator requires.")
    return found


def array(value: ir.Value | None) -> np.ndarray | None:
    """Returns the constant array behind a value (initializer or Constant node), or None."""
    if value is None or value.is_graph_input():  # an input's default can be overridden by the caller
        return None
    constant = value.const_value
    if constant is None:
        node = made_by(value, "Constant")
        if node is None:
            return None
        attribute = node.attributes.get("value")
        if attribute is not None:
            constant = attribute.as_tensor()
        else:
            return _plain_constant(node)
    return constant.numpy()


def _plain_constant(node: ir.Node) -> np.ndarray | None:
    for name, dtype in (
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            return np.asarray(node.attributes[name].value, dtype)
    return None


def uniform(value: ir.Value | None) -> float | None:
    """Returns x if every element of `value` is provably the constant x, else None.

    Looks through the operators that copy elements or change only their shape or type.
    """
    while (
        node := made_by(value, "Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast", "CastLike")
    ) is not None:
        if node.op_type in ("Cast", "CastLike") and value is not None and not _keeps_numbers(value.dtype):
            return None
        value = node.inputs[0]
    if value is None:
        return None
    filled = made_by(value, "ConstantOfShape")
    if filled is not None:
        attribute = filled.attributes.get("value")
        return float(attribute.as_tensor().numpy().reshape(-1)[0]) if attribute is not None else 0.0
    size = value.const_value.size if value.const_value is not None else None
    if size is not None and not 0 < size <= _UNIFORM_LIMIT:
        return None
    data = array(value)
    if data is None or data.size == 0 or not (np.issubdtype(data.dtype, np.number) or data.dtype.kind in "fV"):
        return None
    flat = data.reshape(-1)
    first = flat[0]
    return float(first) if data.size == 1 or bool(np.all(flat == first)) else None


def _keeps_numbers(dtype: ir.DataType | None) -> bool:
    return dtype is not None and dtype.is_floating_point()


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Returns the dimensions of a value (int, or the symbol's name), or None where any is unknown."""
    if value is None or value.shape is None:
        return None
    found: list[Dim] = []
    for dim in value.shape:
        if isinstance(dim, int):
            found.append(dim)
        elif dim.value is None:
            return None
        else:
            found.append(int(dim.value) if dim.value.lstrip("-").isdigit() else dim.value)
    return tuple(found)


def rank(value: ir.Value | None) -> int | None:
    """Returns the number of axes of a value, or None where it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dim(value: ir.Value | None, axis: int) -> Dim | None:
    """Returns one dimension of a value, or None where it is unknown."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    found = value.shape[axis]
    if isinstance(found, int):
        return found
    if found.value is None:
        return None
    return int(found.value) if found.value.lstrip("-").isdigit() else found.value


def broadcast(one: tuple[Dim, ...], two: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """Returns the shape two shapes broadcast to, or None where two dimensions may differ."""
    length = max(len(one), len(two))
    result: list[Dim] = []
    for a, b in zip((1,) * (length - len(one)) + one, (1,) * (length - len(two)) + two, strict=True):
        if a != b and 1 not in (a, b):
            return None
        result.append(b if a == 1 else a)
    return tuple(result)


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """Returns the axes order of a Transpose, explicit even where the attribute is left out."""
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return tuple(attribute.as_ints())
    length = rank(node.inputs[0])
    return None if length is None else tuple(reversed(range(length)))


def swaps_last_two(node: ir.Node) -> bool:
    """Says whether a Transpose exchanges the last two axes and moves no other."""
    perm = permutation(node)
    return perm is not None and len(perm) >= 2 and perm == (*range(len(perm) - 2), len(perm) - 1, len(perm) - 2)


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Returns a constant integer vector, or None."""
    data = array(value)
    return None if data is None or data.dtype.kind not in "iu" else tuple(int(x) for x in data.reshape(-1))


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Returns the axes a reduction runs over, from the left; None where they are not known or are all."""
    given = node.attributes.get("axes")
    axes = tuple(given.as_ints()) if given is not None else integers(node.inputs[1]) if len(node.inputs) > 1 else None
    length = rank(node.inputs[0])
    return None if axes is None or length is None else tuple(axis % length for axis in axes)


def attribute(node: ir.Node, name: str, default: int) -> int:
    """Returns an integer attribute of a node, or the operator's default."""
    found = node.attributes.get(name)
    return default if found is None else int(found.value)


def same(a: ir.Value | None, b: ir.Value | None, depth: int = 12) -> bool:
    """Says whether two values are provably equal: one value, equal constants, or equal operators on equal inputs."""
    if a is b:
        return True
    if a is None or b is None:
        return False
    left, right = a.producer(), b.producer()
    if left is None or right is None or left.op_type == "Constant":
        x, y = array(a), array(b)
        return (
            x is not None and y is not None and x.size <= _UNIFORM_LIMIT and x.dtype == y.dtype and np.array_equal(x, y)
        )
    return (
        depth > 0
        and left.op_identifier() == right.op_identifier()
        and a.index() == b.index()
        and left.op_type not in ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
        and len(left.inputs) == len(right.inputs)
        and _same_attributes(left, right)
        and all(same(x, y, depth - 1) for x, y in zip(left.inputs, right.inputs, strict=True))
    )


def _same_attributes(a: ir.Node, b: ir.Node) -> bool:
    if a.attributes.keys() != b.attributes.keys():
        return False
    for name, one in a.attributes.items():
        two = b.attributes[name]
        if one.type != two.type or one.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return False
        if one.type == ir.AttributeType.TENSOR:
            if not np.array_equal(one.as_tensor().numpy(), two.as_tensor().numpy()):
                return False
        elif one.value != two.value:
            return False
    return True


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yields the main graph and every graph inside a node (If and Loop bodies), outermost first."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph:
            for attr in node.attributes.values() if node.op_type not in _WITHOUT_GRAPHS else ():
                if attr.type == ir.AttributeType.GRAPH:
                    waiting.append(attr.as_graph())
                elif attr.type == ir.AttributeType.GRAPHS:
                    waiting.extend(attr.as_graphs())
