"""One Attention node as a value: what is read from the graph, changed by the steps, and written back once.

A step takes a `Call` and returns another; the nodes it needs go before the old Attention. The old node stays in place
until all steps are through, and is left alone when none applied.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from export.errors import LoweringRefusedError
from export.graph.build import Attribute, Builder
from export.graph.values import Dim, attribute, dim, label
from export.lower.step import Step

TRT_MARK = "TRT_decomposable"


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding that the attention itself applies.

    Attributes:
        cos, sin: Float32 tables [positions, R]; row i is for query i, and for key i.
        size: Columns that are rotated, 2R.
        interleaved: 1 where neighbours are a pair, else 0.
        key: Whether K is rotated too.
    """

    cos: ir.Value
    sin: ir.Value
    size: int
    interleaved: int
    key: bool


@dataclass(frozen=True)
class Call:
    """An attention: `softmax(cap(scale * Q @ K^T) + mask) @ V`.

    Attributes:
        node: The node it was read from.
        query, key, value: [B, H, S, D], [B, Hkv, T, D], [B, Hkv, T, Dv]; or three axes [B, S, H*D] with `heads` set.
        heads: (query heads, key/value heads) while the inputs have three axes; None once they have four.
        keep: Bool mask, True = attend, or None.
        bias: Mask added to the scores, or None. Both masks may be there: what `keep` hides stays hidden.
        past: Cached (key, value) [B, Hkv, P, D] that go before K and V, or None.
        lengths: Valid keys of each batch row, int64 [B], or None.
        offset: Key position of query 0, int64 [1] or [B, 1, 1, 1]; None where it is 0.
        causal: Query i sees keys up to offset + i.
        window: Keys seen to the (left, right) of offset + i; -1 is no bound.
        scale: Factor on the scores; None means 1/sqrt(D).
        softcap: c of c*tanh(x/c); 0 is none.
        precision: Element type of the softmax where the graph asks for one.
        shows_present: Whether both present outputs are written though not both are read.
        score_mode: What the fourth output shows (qk_matmul_output_mode), or None where nobody reads it.
        exact: (keep, bias) as the graph has them, once a step has put finite numbers in place of -inf.
        shown: (keep, bias) to be applied outside to the scores that the fourth output shows; None: they are as wanted.
        may_be_empty: Whether a row might see no key at all.
        attends: Bool, broadcastable to [B, H, S, 1]: rows whose output stands; the others become 0. None: all stand.
        value_size: Channels of V that are real, where V was padded.
        decomposed: Whether it is written as MatMul, Softmax, MatMul instead of one node.
        plugin: Whether it is written as one node of the plugin operator.
        counted: Whether it is written as the target's operator that takes `lengths` itself.
        rotation: What the plugin node rotates Q and K by, or None.
        usual_keys: How many keys the profile's usual call has; None where that is not known.
        swapped: Whether batch and head axes have changed places.
        inner: Whether it is inside the body of an If, Loop or Scan.
        marked: Whether the node carries TRT_decomposable=1.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    heads: tuple[int, int] | None
    keep: ir.Value | None
    bias: ir.Value | None
    past: tuple[ir.Value, ir.Value] | None
    lengths: ir.Value | None
    causal: bool
    window: tuple[int, int]
    scale: float | None
    softcap: float
    precision: ir.DataType | None
    score_mode: int | None
    shows_present: bool = False
    offset: ir.Value | None = None
    exact: tuple[ir.Value | None, ir.Value | None] | None = None
    shown: tuple[ir.Value | None, ir.Value | None] | None = None
    may_be_empty: bool = True
    attends: ir.Value | None = None
    value_size: int | None = None
    decomposed: bool = False
    plugin: bool = False
    counted: bool = False
    rotation: Rotation | None = None
    usual_keys: int | None = None
    swapped: bool = False
    inner: bool = False
    marked: bool = False

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return self.node.name or self.node.outputs[0].name or "Attention"

    @property
    def dtype(self) -> ir.DataType:
        """Element type of Q."""
        if self.query.dtype is None:
            raise LoweringRefusedError(
                f"{label(self.node)}: the element type of its query is not known; "
                "run onnx.shape_inference.infer_shapes on the model first."
            )
        return self.query.dtype

    @property
    def head_size(self) -> int | None:
        """Channels of a query head, or None where they are not a known number."""
        return _channels(self.query, self.heads[0] if self.heads else None)

    @property
    def value_head_size(self) -> int | None:
        """Channels of a value head, or None where they are not a known number."""
        return _channels(self.value, self.heads[1] if self.heads else None)

    @property
    def query_heads(self) -> int | None:
        """Number of query heads, or None where it is not a known number."""
        heads = self.heads[0] if self.heads else dim(self.query, 1)
        return heads if isinstance(heads, int) else None

    @property
    def queries(self) -> Dim | None:
        """Number of queries, by number or name."""
        return dim(self.query, 1 if self.heads else 2)

    @property
    def new_keys(self) -> Dim | None:
        """Number of keys that came with the queries, without those of a past, by number or name."""
        key = self.node.inputs[1]
        return dim(key, 1 if key is not None and key.shape is not None and len(key.shape) == 3 else 2)

    @property
    def in_step(self) -> bool:
        """Whether there surely is one new key for each query, as in decoding."""
        return self.queries is not None and self.queries == self.new_keys

    @property
    def masked(self) -> bool:
        """Whether there is a mask."""
        return self.keep is not None or self.bias is not None

    @property
    def presents(self) -> tuple[ir.Value | None, ir.Value | None]:
        """The second and third outputs of the node, where they are read."""
        return _read_output(self.node, 1), _read_output(self.node, 2)

    @property
    def unread(self) -> tuple[ir.Value, ...]:
        """Outputs after the first that have a name and no reader."""
        return tuple(v for i, v in enumerate(self.node.outputs) if i and v.name and _read_output(self.node, i) is None)

    def said(self, action: str, why: str) -> Step:
        """Returns a step about this attention."""
        return Step(self.name, action, why)


def _channels(value: ir.Value, heads: int | None) -> int | None:
    size = dim(value, -1)
    if not isinstance(size, int):
        return None
    return size if heads is None else size // heads


def _read_output(node: ir.Node, index: int) -> ir.Value | None:
    """Returns an output that someone reads."""
    if index >= len(node.outputs):
        return None
    value = node.outputs[index]
    return value if value.name and (value.uses() or value.is_graph_output()) else None


def read(node: ir.Node) -> Call:
    """Returns an Attention node as a value."""
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    query, key, value, mask, past_key, past_value, lengths = inputs[:7]
    if query is None or key is None or value is None:
        raise LoweringRefusedError(f"{label(node)} lacks Q, K or V: the model is not valid ONNX.")
    q_heads, kv_heads = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
    three_axes = query.shape is not None and len(query.shape) == 3
    if three_axes and not (q_heads and kv_heads):
        raise LoweringRefusedError(f"{label(node)} has inputs of three axes but no q_num_heads and kv_num_heads.")
    is_bool = mask is not None and mask.dtype == ir.DataType.BOOL
    precision = attribute(node, "softmax_precision", 0)
    scale, softcap = node.attributes.get("scale"), node.attributes.get("softcap")
    call = Call(
        node=node,
        query=query,
        key=key,
        value=value,
        heads=(q_heads, kv_heads) if three_axes else None,
        keep=mask if is_bool else None,
        bias=None if is_bool else mask,
        past=None if past_key is None or past_value is None else (past_key, past_value),
        lengths=lengths,
        causal=attribute(node, "is_causal", 0) == 1,
        window=(attribute(node, "left_window_size", -1), attribute(node, "right_window_size", -1)),
        scale=None if scale is None else float(scale.as_float()),
        softcap=0.0 if softcap is None else float(softcap.as_float()),
        precision=ir.DataType(precision) if precision else None,
        score_mode=attribute(node, "qk_matmul_output_mode", 0) if _read_output(node, 3) is not None else None,
        marked=attribute(node, TRT_MARK, 0) == 1,
    )
    masked = mask is not None or call.causal or call.window != (-1, -1) or lengths is not None
    if call.score_mode == 2 and not masked:
        call = replace(call, score_mode=1)
    return call


def write(call: Call, build: Builder) -> tuple[ir.Value, ir.Value | None]:
    """Inserts the one Attention node that `call` says, and returns its output and, where read, its scores."""
    attributes: dict[str, Attribute] = {}
    if call.scale is not None:
        attributes["scale"] = call.scale
    if call.softcap:
        attributes["softcap"] = call.softcap
    if call.precision is not None:
        attributes["softmax_precision"] = int(call.precision)
    if call.causal:
        attributes["is_causal"] = 1
    for name, bound in zip(("left_window_size", "right_window_size"), call.window, strict=True):
        if bound >= 0:
            attributes[name] = bound
    if call.heads:
        attributes["q_num_heads"], attributes["kv_num_heads"] = call.heads
    if call.score_mode:
        attributes["qk_matmul_output_mode"] = call.score_mode
    if call.marked:
        attributes[TRT_MARK] = 1
    if call.keep is not None and call.bias is not None:
        raise TypeError(f"{call.name}: two masks were left for one input")
    past_key, past_value = call.past or (None, None)
    mask = call.bias if call.keep is None else call.keep
    inputs = [call.query, call.key, call.value, mask, past_key, past_value, call.lengths]
    while inputs[-1] is None:
        inputs.pop()
    wanted = [True, *(call.shows_present or p is not None for p in call.presents), call.score_mode is not None]
    while not wanted[-1]:
        wanted.pop()
    old = (call.node.outputs[0], *call.presents, _read_output(call.node, 3))
    node = build.node(
        "Attention",
        inputs,
        attributes,
        dtypes=tuple((_dtype(old[i]) or call.dtype) if w else None for i, w in enumerate(wanted)),
        shapes=tuple(_shape(old[i]) if w and i else None for i, w in enumerate(wanted)),
    )
    node.name = call.name
    for index, present in enumerate(call.presents, 1):
        if present is not None:
            take_place(present, node.outputs[index])
    return node.outputs[0], node.outputs[3] if call.score_mode is not None else None


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _shape(value: ir.Value | None) -> ir.Shape | None:
    return None if value is None else value.shape


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Lets `new` take the uses, the place among the graph's outputs, the name and the type of `old`."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.type, new.shape = old.type or new.type, old.shape or new.shape
    old.name = f"{name}/lowered"
    new.name = name
