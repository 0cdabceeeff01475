"""Which tensors of a float32 graph become half precision, and which stay float32: decided for each node, in order.

Products of matrices (and what keeps float32 inside by its definition: norms with a stash type) run in half precision.
Powers, exponentials, roots, sums and softmaxes run in float32, and so do the angles of sines and cosines. What lies
between follows its operands, the widest deciding; a constant that half precision cannot hold (-1e9, 1e-12) is such an
operand. Constants, weights, sines, cosines and softmax weights decide nothing: they fit either.

The rules are those of PyTorch's autocast, https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior,
stated for ONNX; what ONNX has no half-precision kernel type for stays in float32.
"""

import enum
from functools import cache

import numpy as np
import onnx_ir as ir

from export.graph.values import array
from export.precision import angles

_ONNX = ("", "ai.onnx")
_FLOAT = ir.DataType.FLOAT

# fmt: off
_NARROW = frozenset({
    "Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "LayerNormalization", "MatMul",
    "RMSNormalization", "RNN", "RotaryEmbedding",
})
_WIDE = frozenset({
    "CumSum", "Exp", "GroupNormalization", "InstanceNormalization", "Log", "LogSoftmax", "LpNormalization",
    "MeanVarianceNormalization", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax", "Softplus", "Sqrt",
})
_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})
# fmt: on
_OWN_TYPE = {("Attention", "U"), ("LayerNormalization", "U")}
"""Type parameters that need not be those of the data: a mask may be wider than Q, statistics are the stash's."""


class Level(enum.IntEnum):
    """What a float32 tensor becomes; of two operands the higher decides."""

    FREE = 0
    """Stays float32, and is cast where half precision reads it."""

    HALF = 1
    """Becomes half precision."""

    WIDE = 2
    """Stays float32, and what is computed with it does too."""


class Policy:
    """The decisions about one graph, functions written out and types inferred."""

    def __init__(self, graph: ir.Graph, to: ir.DataType) -> None:
        """Decides for every node and value of `graph`; `to` is the half precision."""
        self._graph, self._to = graph, to
        self._angles = angles.of_graph(graph)
        self.levels: dict[ir.Value, Level] = {}
        self.runs: dict[ir.Node, Level] = {}
        for value in graph.inputs:
            if is_float(value) and value.name not in graph.initializers:
                only_angles = value.uses() and all(use.node in self._angles for use in value.uses())
                self.levels[value] = Level.WIDE if only_angles else Level.HALF
        for node in graph:
            self._decide(node)
        for node in reversed(list(graph)):
            self._revise(node)

    def level(self, value: ir.Value) -> Level:
        """Returns what a float32 value becomes; constants that nothing computes are free."""
        return self.levels.get(value, Level.FREE)

    def needs(self, node: ir.Node, index: int) -> bool | None:
        """Says whether a node reads an input in half precision (True), float32 (False) or as it comes (None)."""
        if self.runs.get(node) != Level.HALF:
            return False
        kind = _parameters(node.op_type, _version(node))[0]
        letter = kind[min(index, len(kind) - 1)]
        if (node.op_type, letter) in _OWN_TYPE:
            return None
        return self._to in _allowed(node.op_type, _version(node), letter)

    def _decide(self, node: ir.Node) -> None:
        made = [v for v in node.outputs if is_float(v)]
        read = [v for v in node.inputs if v is not None and is_float(v)]
        if not made and not read:
            return
        run = self._run(node, read)
        self.runs[node] = run
        for value in made:
            self.levels[value] = self._result(node, value, run)

    def _run(self, node: ir.Node, read: list[ir.Value]) -> Level:
        op = node.op_type
        if node.domain not in _ONNX or _holds_graphs(node) or not self._has_half(node):
            return Level.WIDE
        if node in self._angles:
            return Level.WIDE
        if op == "Cast" and not read:  # positions and masks: 0 and 1 fit any type, other whole numbers may not
            source = node.inputs[0]
            return Level.FREE if source is not None and source.dtype == ir.DataType.BOOL else Level.WIDE
        if op in _NARROW:
            return Level.HALF
        if op in _WIDE or (op == "Mul" and node.inputs[0] is node.inputs[1]):
            return Level.WIDE
        if op in ("Gather", "GatherND") and _is_table(node.inputs[0]) and self._fits(node.inputs[0]):
            return Level.HALF
        levels = [self.level(v) if self._fits(v) else Level.WIDE for v in read]
        return max(levels, default=Level.FREE)

    def _result(self, node: ir.Node, value: ir.Value, run: Level) -> Level:
        if node.op_type in ("Sin", "Cos", "Softmax") and run == Level.WIDE and node.domain in _ONNX:
            return Level.FREE
        if run == Level.HALF:
            letters = _parameters(node.op_type, _version(node))[1]
            letter = letters[min(value.index() or 0, len(letters) - 1)]
            own = (node.op_type, letter) in _OWN_TYPE
            return Level.WIDE if own or self._to not in _allowed(node.op_type, _version(node), letter) else Level.HALF
        return run

    def _revise(self, node: ir.Node) -> None:
        """Lets what follows its operands follow its readers where all of them agree.

        So the scores go to float32 before they are scaled and masked, and a table of cosines to half precision at once;
        a stream with several readers stays what it is.
        """
        run = self.runs.get(node)
        made = [v for v in node.outputs if is_float(v)]
        if run is None or not made or node.op_type in _NARROW or any(v.is_graph_output() for v in made):
            return
        uses = [use for v in made for use in v.uses()]
        if not uses:
            return
        readers = [self.needs(use.node, use.idx) for use in uses]
        follows = node.op_type not in _WIDE and node.domain in _ONNX and node not in self._angles
        if run == Level.HALF and follows and readers == [False] and not _is_gather(node):
            self._set(node, Level.WIDE)
        elif run != Level.HALF and node.op_type in _MOVES and follows and all(readers) and self._can_be_half(node):
            self._set(node, Level.HALF)

    def _can_be_half(self, node: ir.Node) -> bool:
        return all(self._fits(v) for v in node.inputs) and self._has_half(node) and not _holds_graphs(node)

    def _set(self, node: ir.Node, run: Level) -> None:
        self.runs[node] = run
        for value in node.outputs:
            if is_float(value):
                self.levels[value] = self._result(node, value, run)

    def _fits(self, value: ir.Value | None) -> bool:
        """Says whether half precision holds a constant: not beyond its range, no scalar below its normal numbers."""
        if value is None or value.const_value is None or not is_float(value) or self._to == ir.DataType.BFLOAT16:
            return True
        constant = array(value)
        if constant is None:
            constant = value.const_value.numpy()
        if not constant.size:
            return True
        size = np.abs(constant)
        finite = size[np.isfinite(size)]
        if finite.size and float(finite.max()) > float(self._to.max):
            return False
        return constant.size > 1 or not finite.size or float(finite.max()) == 0 or float(finite.max()) >= 2.0**-14

    def _has_half(self, node: ir.Node) -> bool:
        kinds, results = _parameters(node.op_type, _version(node))
        if not kinds and not results:
            return node.op_type == "Constant"
        letters = [kinds[min(i, len(kinds) - 1)] for i, v in enumerate(node.inputs) if is_float(v)]
        letters += [results[min(i, len(results) - 1)] for i, v in enumerate(node.outputs) if is_float(v)]
        free = [k for k in letters if not k.startswith("tensor(") and (node.op_type, k) not in _OWN_TYPE]
        return bool(free) and all(self._to in _allowed(node.op_type, _version(node), k) for k in free)


def is_float(value: ir.Value | None) -> bool:
    """Says whether a value is a tensor of float32."""
    return value is not None and value.dtype == _FLOAT and not isinstance(value.type, ir.SequenceType | ir.OptionalType)


def _holds_graphs(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _is_gather(node: ir.Node) -> bool:
    return node.op_type in ("Gather", "GatherND") and _is_table(node.inputs[0])


def _is_table(value: ir.Value | None) -> bool:
    """Says whether a value is a weight with rows to look up: an embedding."""
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) >= 2


def _version(node: ir.Node) -> int:
    graph = node.graph
    return node.version or (graph.opset_imports.get("", 0) if isinstance(graph, ir.Graph) else 0) or 1


@cache
def _parameters(op: str, version: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the type parameter of every input and output, the last of a variadic one standing for the rest."""
    import onnx.defs

    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=version)
    except onnx.defs.SchemaError:
        return (), ()
    return tuple(i.type_str for i in schema.inputs), tuple(o.type_str for o in schema.outputs)


@cache
def _allowed(op: str, version: int, letter: str) -> frozenset[ir.DataType]:
    """Returns the floating-point types that an operator's type parameter may be."""
    import onnx.defs

    names = {"tensor(float)": _FLOAT, "tensor(float16)": ir.DataType.FLOAT16, "tensor(bfloat16)": ir.DataType.BFLOAT16}
    if letter in names:
        return frozenset({names[letter]})
    schema = onnx.defs.get_schema(op, max_inclusive_version=version)
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == letter), ())
    return frozenset(names[text] for text in allowed if text in names)
