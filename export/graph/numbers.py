"""Numbers for values: two values with one number are surely the same tensor, however often a graph computes it."""

from collections.abc import Hashable
from hashlib import blake2b

import onnx_ir as ir

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_LIMIT = 1 << 24
"""Constants with more elements are compared by identity: reading them would cost more than sharing them gives."""


class Numbers:
    """Numbers the values of one graph on demand, each once: linear in what is asked for."""

    def __init__(self) -> None:
        self._numbers: dict[ir.Value, int] = {}
        self._keys: dict[Hashable, int] = {}

    def of(self, value: ir.Value | None) -> int:
        """Returns the number of a value, -1 for an input that is left out."""
        if value is None:
            return -1
        waiting = [value]
        while waiting:
            current = waiting[-1]
            if current in self._numbers:
                waiting.pop()
                continue
            node = current.producer()
            missing = [v for v in node.inputs if v is not None and v not in self._numbers] if node is not None else []
            if missing:
                waiting.extend(missing)
                continue
            self._numbers[waiting.pop()] = self._keys.setdefault(self._key(current), len(self._keys))
        return self._numbers[value]

    def _key(self, value: ir.Value) -> Hashable:
        node = value.producer()
        if node is None:
            data = value.const_value
            if data is None or value.is_graph_input() or data.size > _LIMIT:
                return ("leaf", id(value))
            return ("constant", *_content(data))
        attributes = attribute_key(node)
        if attributes is None or node.op_type in _RANDOM:
            return ("leaf", id(value))
        if node.op_type == "Constant":
            return ("constant", *attributes[0][1]) if attributes and attributes[0][0] == "value" else attributes
        inputs = tuple(-1 if v is None else self._numbers[v] for v in node.inputs)
        return (node.op_identifier(), attributes, inputs, value.index())


def attribute_key(node: ir.Node) -> tuple[tuple[str, tuple[Hashable, ...]], ...] | None:
    """Returns the attributes of a node, comparable by value; None where one of them is a graph."""
    found: list[tuple[str, tuple[Hashable, ...]]] = []
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return None
        value = attribute.value
        if isinstance(value, ir.TensorProtocol):
            found.append((name, _content(value)))
        else:
            found.append((name, (attribute.type, *map(str, value if isinstance(value, list | tuple) else [value]))))
    return tuple(found)


def _content(data: ir.TensorProtocol) -> tuple[Hashable, ...]:
    return (data.dtype, tuple(data.shape.numpy()), blake2b(data.tobytes(), digest_size=16).digest())
