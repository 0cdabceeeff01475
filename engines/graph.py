"""What an engine build must know of an ONNX file before a vendor's parser sees it, read without the weights.

The parsers look operators up by type alone, whatever the domain: a custom `my::Relu` is silently built as ONNX Relu,
and so is a call of a function named Relu. Hence the list of foreign nodes. Attention nodes are listed because the
builder's log is asked later what became of each.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import UsageError
from engines.runner import TensorSpec

if TYPE_CHECKING:
    import onnx

ATTENTION_OPS = ("Attention", "TRT_Attention", "MultiHeadAttention", "GroupQueryAttention")
_STANDARD = ("", "ai.onnx")
_PASS_SCORES = ("Cast", "Dropout", "Identity", "Where", "Mul", "Reshape", "Transpose", "Expand", "Squeeze", "Unsqueeze")
_STEPS = 6  # how far a Softmax may be from the MatMul with V: a cast, a guard, a reshape and so on


@dataclass(frozen=True)
class AttentionNode:
    """One attention of the graph, as one op or spelled out around a Softmax.

    Attributes:
        name: Name of the Attention or Softmax node; "node_of_<output>" where it has none, as the parsers call it.
        op: "Attention", "TRT_Attention", ..., or "Softmax".
        nodes: Names of the nodes that compute it, its own first; for a Softmax also the MatMuls found around it.
        query, key: Names of the tensors it reads as Q and K ("" for a Softmax).
        dtype: numpy or ml_dtypes name of Q, where the file states it or holds one floating-point dtype only.
        head_size: Channels a head of Q, where the file states it.
        scale: The `scale` attribute, or None for the default 1 / sqrt(head size).
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    query: str = ""
    key: str = ""
    dtype: str | None = None
    head_size: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class ForeignNode:
    """A node outside ONNX's own domain; `function` is whether the model holds its body."""

    name: str
    domain: str
    op: str
    function: bool


@dataclass(frozen=True)
class Graph:
    """The facts of one ONNX file.

    Attributes:
        inputs, outputs: Its tensors, in the graph's order, without those that are initializers.
        dtypes: numpy or ml_dtypes names of all tensors whose dtype the file states.
        foreign: Nodes outside ONNX's own domain, subgraphs and function bodies included.
        attentions: Its attentions, in the graph's order.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtypes: frozenset[str]
    foreign: tuple[ForeignNode, ...]
    attentions: tuple[AttentionNode, ...]


def read(path: Path) -> Graph:
    """Returns the facts of the ONNX file at `path`, external weights unread.

    Raises:
        UsageError: It does not exist or is no ONNX model.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; check the path.") from error
    except Exception as error:  # protobuf's own error
        raise UsageError(f"{path} is no ONNX model, or a truncated one: {error}; export it again.") from error
    if not model.graph.output:
        raise UsageError(f"{path} is no ONNX model, or a truncated one: it has no graph output; export it again.")
    graph, weights = model.graph, {i.name for i in model.graph.initializer}
    values = {v.name: _spec(v) for v in (*graph.value_info, *graph.input, *graph.output) if _is_tensor(v)}
    dtypes = {spec.dtype for spec in values.values()} | {_dtype(i.data_type) for i in graph.initializer}
    functions = {(f.domain, f.name) for f in model.functions}
    everywhere = [n for body in (graph.node, *(f.node for f in model.functions)) for n in _nodes(body)]
    for node in everywhere:
        dtypes |= {_dtype(a.i) for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
    foreign = [
        ForeignNode(name_of(n), n.domain, n.op_type, (n.domain, n.op_type) in functions)
        for n in everywhere
        if n.domain not in _STANDARD
    ]
    return Graph(
        tuple(values[i.name] for i in graph.input if i.name not in weights and i.name in values),
        tuple(values[o.name] for o in graph.output if o.name in values),
        frozenset(dtypes - {""}),
        tuple(foreign),
        tuple(_attentions(graph, values, _only(d for d in dtypes if "float" in d))),
    )


def name_of(node: "onnx.NodeProto") -> str:
    """Returns the node's name, or the one that both vendors' parsers give a node without."""
    return str(node.name) or (f"node_of_{node.output[0]}" if node.output else node.op_type)


def _nodes(body: "Iterable[onnx.NodeProto]") -> Iterator["onnx.NodeProto"]:
    for node in body:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner.node)


def _only(dtypes: Iterable[str]) -> str | None:
    found = set(dtypes)
    return found.pop() if len(found) == 1 else None


def _attentions(graph: "onnx.GraphProto", values: dict[str, TensorSpec], dtype: str | None) -> Iterator[AttentionNode]:
    made = {output: n for n in graph.node for output in n.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    for node in graph.node:
        if node.op_type in ATTENTION_OPS and len(node.input) > 1:
            yield _one_op(node, values, dtype)
        elif node.op_type == "Softmax" and (after := _walk(node.output[0], lambda t: readers.get(t, []))):
            before = _walk(node.input[0], lambda t: [made[t]] if t in made else [], up=True)
            yield AttentionNode(name_of(node), "Softmax", (name_of(node), *before, *after))


def _one_op(node: "onnx.NodeProto", values: dict[str, TensorSpec], dtype: str | None) -> AttentionNode:
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    query = values.get(node.input[0])
    size = query.shape[-1] if query and query.shape else None
    heads = given.get("q_num_heads") or given.get("num_heads")
    if isinstance(size, int) and query and len(query.shape) == 3:
        size = size // heads if heads else None
    return AttentionNode(
        name_of(node),
        node.op_type,
        (name_of(node),),
        node.input[0],
        node.input[1],
        query.dtype if query else dtype,
        size if isinstance(size, int) else None,
        float(given["scale"]) if "scale" in given else None,
    )


def _walk(start: str, neighbours: "Callable[[str], list[onnx.NodeProto]]", up: bool = False) -> tuple[str, ...]:
    """Returns the names of the first MatMul-like nodes reached from a tensor through nodes that pass scores on."""
    found: list[str] = []
    tensors = [start]
    for _ in range(_STEPS):
        following: list[str] = []
        for node in (n for t in tensors for n in neighbours(t)):
            if node.op_type in ("MatMul", "Gemm", "Einsum"):
                found.append(name_of(node))
            elif node.op_type in _PASS_SCORES or (up and node.op_type in ("Add", "Sub", "Div", "Tanh")):
                following += node.input if up else node.output
        if found:
            return tuple(dict.fromkeys(found))
        tensors = following
    return ()


def _is_tensor(value: "onnx.ValueInfoProto") -> bool:
    return bool(value.type.HasField("tensor_type"))


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}.{axis}"
        for axis, d in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, _dtype(tensor.elem_type), shape)


def _dtype(number: int) -> str:
    import onnx

    if number in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return ""
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(number).name)
    except (KeyError, TypeError, ValueError):  # a type newer than the installed onnx
        return ""
