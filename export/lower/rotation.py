"""RotaryEmbedding on Q, and on K, becomes part of the plugin node where the operator can say it exactly.

The operator (`plugins.contract`) rotates query i by row i of one table, and key j by row j of the same table, unless
causal counts from the last key. So the angles must be the same for every batch row, and K's those of Q. Whether K, too,
is rotated inside is a matter of speed: `plugins.key_rotation` decides by the number of keys.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import attribute, dim, dims, made_by, rank, same
from export.lower.call import Call, Rotation
from export.lower.step import Step
from plugins import key_rotation

_FLOAT = ir.DataType.FLOAT


def fold_rotation(call: Call, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Takes the RotaryEmbedding off Q, and off K where the rule says so, and puts it into the call's `rotation`."""
    if call.causal and (call.offset is not None or call.lengths is not None):
        return call, ()
    query = _Turned.of(call.query, call.dtype)
    if query is None:
        return call, ()
    key = _Turned.of(call.key, call.dtype)
    with_key = key is not None and query.turns_like(key) and key_rotation.inside(call.usual_keys)
    cos, sin = (query.table(v, build) for v in (query.cos, query.sin))
    rotation = Rotation(cos, sin, query.size, query.interleaved, with_key)
    folded = replace(call, query=query.before, rotation=rotation)
    if key is not None and with_key:
        folded = replace(folded, key=key.before)
        return folded, (call.said("rotation in the plugin", "The plugin's kernel rotates Q and K as it reads them."),)
    why = "The plugin's kernel rotates Q as it reads it"
    if key is not None:
        why += f"; K is rotated once before, as it may have more than {key_rotation.crossover().keys} keys"
    return folded, (call.said("rotation in the plugin", f"{why}."),)


@dataclass(frozen=True)
class _Turned:
    """An operand [B, H, S, D] that a RotaryEmbedding made, for this attention alone.

    Attributes:
        before: It before the rotation, in the attention's type.
        cos, sin: Tables, [1, S, R], or [N, R] with positions.
        positions: [1, S], or None.
        size: Columns that are rotated.
        interleaved: Whether neighbours are a pair.
    """

    before: ir.Value
    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None
    size: int
    interleaved: int

    @staticmethod
    def of(value: ir.Value, dtype: ir.DataType) -> "_Turned | None":
        """Reads an operand as one, or returns None."""
        source, narrowed = value, made_by(value, "Cast")
        if narrowed is not None and narrowed.inputs[0] is not None:
            source = narrowed.inputs[0]
        node = made_by(source, "RotaryEmbedding")
        if node is None or any(len(v.uses()) > 1 or v.is_graph_output() for v in {value, source}):
            return None
        x, cos, sin, positions = [*node.inputs, None][:4]
        if source is not value and source.dtype == _FLOAT:  # rotated in the tables' wider type
            widened = made_by(x, "Cast")
            x = widened.inputs[0] if widened is not None else None
        if x is None or x.dtype != dtype or rank(x) != 4 or cos is None or sin is None:
            return None
        cos, sin, positions = _one_row(cos), _one_row(sin), None if positions is None else _one_row(positions)
        size = attribute(node, "rotary_embedding_dim", 0) or dim(x, 3)
        if not isinstance(size, int) or any(v.dtype is None for v in (cos, sin)):
            return None
        shared = (cos, sin) if positions is None else (positions,)
        axes = 3 if positions is None else 2
        if any(dim(v, 0) != 1 for v in shared) or not rank(cos) == rank(sin) == axes:
            return None
        return _Turned(x, cos, sin, positions, size, attribute(node, "interleaved", 0))

    def turns_like(self, other: "_Turned") -> bool:
        """Says whether both are rotated by the same angles."""
        alike = (self.size, self.interleaved) == (other.size, other.interleaved)
        tables = ((self.cos, other.cos), (self.sin, other.sin), (self.positions, other.positions))
        return alike and all(same(a, b) for a, b in tables)

    def table(self, values: ir.Value, build: Builder) -> ir.Value:
        """Returns a table [S, R] in float32, row i for query i."""
        dtype, columns = values.dtype, dim(values, -1)
        if self.positions is None:
            shape = ir.Shape([dim(values, 1), columns])
            rows = build("Squeeze", values, build.axes(0), dtype=dtype, shape=shape)
        else:
            length = dim(self.positions, 1)
            at = build("Squeeze", self.positions, build.axes(0), dtype=self.positions.dtype, shape=ir.Shape([length]))
            rows = build("Gather", values, at, dtype=dtype, shape=ir.Shape([length, columns]), axis=0)
        return rows if dtype == _FLOAT else build("Cast", rows, dtype=_FLOAT, shape=rows.shape, to=int(_FLOAT))


def _one_row(value: ir.Value) -> ir.Value:
    """Returns what a table or positions of every batch row were repeated from, where it is one row, or the value."""
    made = made_by(value, "Expand", "Cast")
    source = made.inputs[0] if made is not None else None
    if made is None or source is None or source.dtype is None or value.dtype is None or rank(source) != rank(value):
        return value
    if made.op_type == "Cast" and source.dtype.bitwidth > value.dtype.bitwidth:
        return value
    same_rows = (dims(source) or (None,))[1:] == (dims(value) or ())[1:] and None not in (dims(source) or (None,))[1:]
    return _one_row(source) if same_rows else value
