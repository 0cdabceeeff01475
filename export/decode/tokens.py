"""Which tensors of a graph hold one row a token, and whether each row depends on its own token and earlier ones only.

A graph can be run a token at a time where every operator but causal self-attention treats each token alone. Tensors
are told apart by what they hang on: *content* on the tokens themselves; everything else is *positional*: sizes,
positions, tables, the padding mask. Positional tensors can be computed for all positions at once and cut to those of a
step; content is there for the step's tokens only.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from export.errors import UsageError
from export.graph.values import attribute, dim, dims, integers, label, rank, reduced_axes

_SIZES = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,),
}  # fmt: skip
"""Operator: the inputs that say how large or where, not what."""

_ALONE = set(
    """
    Abs Add And Cast CastLike Ceil Clip Cos Div Elu Equal Erf Exp Expand Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow PRelu
    Reciprocal Relu Reshape RotaryEmbedding Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Squeeze Sub Sum Swish
    Tanh ThresholdedRelu Transpose Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)
"""Operators that treat each row of their inputs alone, whichever axis holds the tokens."""

BROADCAST = {"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Sub", "Where"}
"""Those of them that lay their inputs over each other, aligned at the last axis."""

_WORD = re.compile(r"[^\W\d][\w.]*")
"""A name in a dimension, which may be arithmetic or "Min(24, length)"."""

_NORMALISING = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}


def refused(sentence: str) -> UsageError:
    """Returns the error of a graph that cannot be run a token at a time."""
    return UsageError(
        f"This model cannot be split into prefill and steps: {sentence} Give a model whose attention is causal and "
        "whose other operators treat each token alone, or one with past and present tensors as its inputs and outputs."
    )


@dataclass
class Tokens:
    """What is known of the tokens of a graph whose shapes are inferred.

    Attributes:
        length: Name of the dimension that counts tokens.
        batch: Name (or size) of the batch dimension.
        inputs: Graph inputs that hold tokens, [batch, length, ...].
        masks: Graph inputs that say which tokens are real, [batch, length].
        content: Every value that hangs on what the tokens are.
        attentions: The self-attentions over them, in order.
    """

    length: str
    batch: int | str
    inputs: tuple[ir.Value, ...]
    masks: tuple[ir.Value, ...]
    content: set[ir.Value] = field(default_factory=set)
    attentions: list[ir.Node] = field(default_factory=list)

    def axes(self, value: ir.Value | None) -> tuple[int, ...]:
        """Returns the axes of a value that count tokens, alone or merged with others."""
        found = dims(value)
        if found is None:
            return ()
        return tuple(i for i, d in enumerate(found) if isinstance(d, str) and self.length in _WORD.findall(d))

    def data(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        """Yields (index, input) of what a node computes on, without what only says how large or where."""
        for at, value in enumerate(node.inputs):
            if value is not None and at not in _SIZES.get(node.op_type, ()):
                yield at, value


def read(graph: ir.Graph) -> Tokens:
    """Returns the tokens of a fused graph.

    Raises:
        UsageError: It has no self-attention, one that is not causal, or an operator that mixes tokens.
    """
    attentions = [n for n in graph if n.op_type == "Attention" and n.domain == ""]
    over = [(n, _sequence(n, 0), _sequence(n, 1)) for n in attentions]
    self_attentions = [(n, q) for n, q, k in over if isinstance(q, str) and q == k]
    if not self_attentions:
        raise refused("no attention in it is one op with queries and keys of one length.")
    length = self_attentions[0][1]
    named = [v for v in graph.inputs if length in (dims(v) or ())]
    masks = tuple(v for v in named if rank(v) == 2 and ("mask" in str(v.name).lower() or v.dtype == ir.DataType.BOOL))
    inputs = tuple(v for v in named if v not in masks)
    if not inputs:
        raise refused(f"no input holds the tokens that dimension {length!r} counts.")
    for value in named:
        if (rank(value) or 0) < 2 or dim(value, 1) != length:
            raise refused(
                f"input {value.name!r} is {value.shape}; tokens and their padding mask are [batch, {length}, ...]."
            )
    batch = dim(inputs[0], 0)
    tokens = Tokens(length, batch if batch is not None else "batch", inputs, masks, set(inputs))
    for node in graph:
        _follow(node, tokens)
    if not any(o in tokens.content for o in graph.outputs):
        raise refused("none of its outputs hangs on its tokens.")
    return tokens


def _sequence(attention: ir.Node, at: int) -> int | str | None:
    value = attention.inputs[at]
    return dim(value, 1 if rank(value) == 3 else 2)


def _follow(node: ir.Node, tokens: Tokens) -> None:
    """Adds a node's outputs to the content where its inputs are, once it is known to treat each token alone."""
    reads = [(at, v) for at, v in tokens.data(node) if v in tokens.content]
    for at, value in enumerate(node.inputs):
        if value in tokens.content and (at, value) not in reads:
            raise refused(f"{label(node)} takes a size from what the tokens are.")
    if not reads or node.op_type in ("Shape", "Size"):
        return
    outputs = [o for o in node.outputs if o.name]
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        raise refused(f"{label(node)} runs a graph of its own on the tokens.")
    if node.op_type == "Attention" and node.domain == "":
        _attention(node, tokens)
    else:
        _alone(node, reads, outputs, tokens)
    tokens.content.update(outputs)


def _attention(node: ir.Node, tokens: Tokens) -> None:
    query, key = _sequence(node, 0), _sequence(node, 1)
    if query != tokens.length:
        raise refused(f"{label(node)} has queries [{query}] that are not one a token.")
    if any(v is not None for v in node.inputs[4:]) or any(o.name for o in node.outputs[1:]):
        raise refused(f"{label(node)} has a cache or more outputs than one.")
    if any(v in tokens.content for v in node.inputs[3:4]):
        raise refused(f"the mask of {label(node)} hangs on what the tokens are.")
    windows = [attribute(node, f"{side}_window_size", -1) for side in ("left", "right")]
    if windows != [-1, -1]:
        raise refused(f"{label(node)} has a window attribute.")
    if key == tokens.length:
        tokens.attentions.append(node)
    elif any(v in tokens.content for v in node.inputs[1:3]):
        raise refused(f"{label(node)} reads the tokens as keys of another length ({key}).")


def _alone(node: ir.Node, reads: list[tuple[int, ir.Value]], outputs: list[ir.Value], tokens: Tokens) -> None:
    """Raises UsageError unless a node makes each token's output from that token's inputs alone."""
    places = {value: tokens.axes(value) for value in (*(v for _, v in reads), *outputs)}
    for value, axes in places.items():
        if len(axes) != 1:
            raise refused(
                f"{label(node)} has {value.name!r} {value.shape}, in which one axis does not hold the tokens."
            )
    op = node.op_type
    axis = {at: places[v][0] - (rank(v) or 0) for at, v in reads}  # from the right, as broadcasting aligns
    first = axis[reads[0][0]]
    size = rank(reads[0][1]) or 0
    given = attribute(node, "axis", -1 if op in ("Softmax", "LogSoftmax", *_NORMALISING) else 0)
    counted = given if given < 0 else given - size
    if op in _ALONE:
        wrong = op in BROADCAST and len({*axis.values(), _right(outputs[0], tokens)}) > 1
    elif op in ("MatMul", "Gemm"):
        contracted = {0: -2 if attribute(node, "transA", 0) else -1, 1: -1 if attribute(node, "transB", 0) else -2}
        wrong = any(axis[at] == contracted.get(at) for at in axis)
    elif op in ("Softmax", "LogSoftmax", "Concat", "Split"):
        wrong = counted in axis.values()
    elif op in _NORMALISING:
        wrong = counted <= first
    elif op == "Gather":
        wrong = 0 in axis and counted == axis[0]
    elif op.startswith("Reduce"):
        reduced = reduced_axes(node)
        wrong = reduced is None or first + size in reduced
    elif op == "Slice":
        cut = integers(node.inputs[3]) if len(node.inputs) > 3 else None
        wrong = cut is None or first in {c if c < 0 else c - size for c in cut}
    else:
        raise refused(f"{label(node)} is not known to treat each token alone.")
    if wrong:
        raise refused(f"{label(node)} mixes tokens.")


def _right(value: ir.Value, tokens: Tokens) -> int:
    return tokens.axes(value)[0] - (rank(value) or 0)
