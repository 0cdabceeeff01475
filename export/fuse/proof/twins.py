"""Tells which comparisons are the same computation, before a model is made for any of them.

The layers of a model differ in weights that lie outside the attention's region, so the regions of most blocks are the
same graph, drawn the same inputs, and run to the same bits; only one of them need be run. Equal means equal bytes once
the tensors are numbered in the order they are met: operators, attributes, constants, types, shapes and symbols count.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.fuse.proof.region import Cut
from export.fuse.rows import Verification

_PLAIN = {
    ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING,
    ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS,
}  # fmt: skip


@dataclass(frozen=True)
class Region:
    """One side of a comparison: what was cut out, the tensors it ends in, and its default opset."""

    cut: Cut
    ends: Sequence[ir.Value]
    opset: int


class Twins:
    """What was found right, by what it computes.

    Attributes:
        passed: The verdicts that are good; a bad one is not shared, for it names its block.
    """

    def __init__(self) -> None:
        self.passed: dict[bytes, Verification] = {}
        self._data: dict[int, tuple[ir.TensorProtocol, bytes]] = {}

    def fingerprint(
        self, sides: Iterable[Region], leaves: Iterable[ir.Value], masks: Iterable[str], ends: Iterable[ir.Value]
    ) -> bytes | None:
        """Returns what is equal for two comparisons only if they compute the same, or None where that is not told.

        Args:
            sides: The region before and after.
            leaves: The tensors that are drawn, in the order they are drawn.
            masks: The names of those that are drawn as masks.
            ends: The values of the op that the error bounds are computed from and for.
        """
        numbers = _Numbers()
        digest = hashlib.sha256()
        for leaf in leaves:
            digest.update(f"{_typed(leaf, numbers)};".encode())
        for side in sides:
            digest.update(f"opset {side.opset};".encode())
            for node in side.cut.nodes:
                attributes = [self._attribute(a) for _, a in sorted(node.attributes.items())]
                if None in attributes:
                    return None
                read = [numbers.of(v) for v in node.inputs]
                made = [_typed(v, numbers) for v in node.outputs]
                digest.update(f"{node.op_identifier()} {node.version} {attributes} {read} {made};".encode())
            for value in side.cut.constants.values():
                digest.update(f"{_typed(value, numbers)} {self._tensor(value.const_value)};".encode())
            for value in (*side.cut.leaves.values(), *side.cut.shaped.values(), *side.ends):
                digest.update(f"{_typed(value, numbers)};".encode())
        digest.update(str(sorted(numbers[name] for name in masks)).encode())
        digest.update(str([numbers.of(end) for end in ends]).encode())
        return digest.digest()

    def _attribute(self, attribute: ir.Attr) -> str | None:
        """Returns an attribute as text; None for one that holds a graph, whose names are not numbered."""
        if attribute.is_ref() or attribute.type not in (*_PLAIN, ir.AttributeType.TENSOR):
            return None
        plain = attribute.type in _PLAIN
        return f"{attribute.name} {attribute.type} {attribute.value!r}" if plain else self._tensor(attribute.value)

    def _tensor(self, tensor: ir.TensorProtocol | None) -> str:
        """Returns a tensor's type, shape and data as text; the data of one that many regions hold is read once."""
        if tensor is None:
            return ""
        if id(tensor) not in self._data:  # the tensor is kept beside its digest, so that its id stays its own
            self._data[id(tensor)] = tensor, hashlib.sha256(tensor.tobytes()).digest()
        return f"{tensor.dtype} {tensor.shape} {self._data[id(tensor)][1].hex()}"


class _Numbers(dict[str, str]):
    """Gives each name a number when it is first asked for; both sides call one tensor by one name."""

    def __missing__(self, name: str) -> str:
        self[name] = f"t{len(self)}"
        return self[name]

    def of(self, value: ir.Value | None) -> str:
        """Returns the number of a tensor, and none for one that is left out."""
        return self[value.name] if value is not None and value.name else ""


def _typed(value: ir.Value, numbers: _Numbers) -> str:
    return f"{numbers.of(value)} {value.dtype} {value.shape}"
