"""What the TorchScript exporter writes wrong, written right."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.onnx import symbolic_helper, symbolic_opset14, utils
from torch.onnx.symbolic_helper import parse_args

if TYPE_CHECKING:
    import onnx_ir as ir


@parse_args("v", "i", "v")
def unflatten(g: Any, x: Any, dim: int, sizes: Any) -> Any:
    """Writes aten::unflatten as a Reshape whose result has no size recorded.

    PyTorch's own records the sizes of the traced run where it cannot infer them, and so freezes every later x.shape:
    self-attention by nn.MultiheadAttention, which unflattens its packed projection, then runs at one length only.
    """
    rank = x.type().dim()
    if rank is None:
        raise RuntimeError("unflatten of a tensor of unknown rank does not export")
    axis = dim % rank
    shape = g.op("Shape", x)
    parts = [sizes]
    if axis > 0:
        parts.insert(0, g.op("Slice", shape, _constant(g, 0), _constant(g, axis)))
    if axis < rank - 1:
        parts.append(g.op("Slice", shape, _constant(g, axis + 1), _constant(g, rank)))
    made = g.op("Reshape", x, g.op("Concat", *parts, axis_i=0) if len(parts) > 1 else parts[0])
    count = _length(sizes)
    if count is not None:
        made.setType(x.type().with_sizes([None] * (rank - 1 + count)))
    return made


def scaled_dot_product_attention(g: Any, query: Any, *rest: Any) -> Any:
    """Writes aten::scaled_dot_product_attention as PyTorch does, in the query's type and without NaN for want of keys.

    PyTorch's own writes the constants of a mask in float32; type promotion then makes float32 of everything behind it,
    up to the graph's outputs, where the module at half precision returns half precision. And it sets the weights of a
    row that sees no key to 0 under a boolean mask only, where the operator does so under one of -inf too.
    """
    made = symbolic_opset14.scaled_dot_product_attention(g, query, *rest)
    if len(rest) > 2 and not symbolic_helper._is_none(rest[2]):
        made = _guarded(g, made, query)
    half = {"Half": 10, "BFloat16": 16}.get(query.type().scalarType() or "")
    return made if half is None else g.op("Cast", made, to_i=half)


def _guarded(g: Any, made: Any, query: Any) -> Any:
    """Returns the product with V of Where(IsNaN(p), 0, p) for one of a softmax p, which PyTorch has left unguarded."""
    weights, value = made.node().inputs()
    if weights.node().kind() != "onnx::Softmax":
        return made
    half = {"Half": torch.float16, "BFloat16": torch.bfloat16}.get(query.type().scalarType() or "", torch.float32)
    zero = g.op("Constant", value_t=torch.zeros(1, dtype=half))
    return g.op("MatMul", g.op("Where", g.op("IsNaN", weights), zero, weights), value)


REPAIRS: dict[str, Callable[..., Any]] = {
    "aten::unflatten": unflatten,
    "aten::scaled_dot_product_attention": scaled_dot_product_attention,
}
"""{operator: how to write it}."""


@contextlib.contextmanager
def registered(opset: int) -> Iterator[None]:
    """Registers the repairs with the exporter and takes them out again."""
    for name, symbolic in REPAIRS.items():
        utils.register_custom_op_symbolic(name, symbolic, opset)
    try:
        yield
    finally:
        for name in REPAIRS:
            utils.unregister_custom_op_symbolic(name, opset)


def casts(model: "ir.Model") -> None:
    """Turns every cast to complex128 into one to bfloat16, in place.

    PyTorch counts bfloat16 as its type 15 and writes that number where it promotes types; ONNX's type 15 is complex128,
    which no graph of this exporter can hold.
    """
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == ir.DataType.COMPLEX128:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.BFLOAT16))
            node.outputs[0].dtype = ir.DataType.BFLOAT16


def _constant(g: Any, value: int) -> Any:
    return g.op("Constant", value_t=torch.tensor([value], dtype=torch.int64))


def _length(sizes: Any) -> int | None:
    if sizes.node().kind() == "prim::ListConstruct":
        return len(list(sizes.node().inputs()))
    kind = sizes.type()
    known = kind.sizes() if hasattr(kind, "sizes") else None
    return int(known[0]) if known else None
