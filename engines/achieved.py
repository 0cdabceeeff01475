"""The precision that an engine computes in, read from its layers: what was asked for is not what a layer does.

What counts is the type of the operands of matrix products: a softmax, a norm or a table of angles computed in float32
beside them is as it should be.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from engines.kernels import FUSED_TACTIC
from engines.layers import Layer

NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""The dtypes that a build can ask for, by the names that layers give their tensors."""

UNKNOWN = "unknown"
_BY_WIDTH = ("fp32", "bf16", "fp16")
_PRODUCTS = ("gemm", "runtime_fusion", "conv")
_PRODUCT_TACTIC = re.compile(r"^_+(?:gemm|gemv|fc|conv|bmm)(?:_|$)")


@dataclass(frozen=True)
class Achieved:
    """What an engine computes in.

    Attributes:
        precision: The widest of its matrix products, or "unknown" where it has none that can be read.
        products: {precision: how many matrix products, each attention's among them}.
        layers: {precision: how many layers read or write tensors of it, the widest of each}.
        others: For each product that is no attention's, the nodes it came from and its precision.
    """

    precision: str = UNKNOWN
    products: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    others: tuple[tuple[str, str], ...] = ()


def of_engine(layers: Iterable[Layer], attentions: Collection[str] = (), angles: Collection[str] = ()) -> Achieved:
    """Returns the precision of an engine.

    Args:
        layers: Its layers.
        attentions: Names of the layers that compute attentions.
        angles: Names of the ONNX nodes that compute angles of sines and cosines, which stay in float32.
    """
    products: dict[str, int] = {}
    everything: dict[str, int] = {}
    others = []
    for layer in layers:
        seen = widest(layer)
        if seen is None:
            continue
        everything[seen] = everything.get(seen, 0) + 1
        if not is_product(layer) or (layer.origins and set(layer.origins) <= set(angles)):
            continue
        operands = _operands(layer) or seen
        products[operands] = products.get(operands, 0) + 1
        if layer.name not in attentions:
            others.append((", ".join(layer.origins) or layer.name, operands))
    return Achieved(next((p for p in _BY_WIDTH if p in products), UNKNOWN), products, everything, tuple(others))


def of_kernels(layers: Iterable[Layer], names: Collection[str]) -> str | None:
    """Returns the widest precision of the matrix products among the named layers; None where there is none to read."""
    seen = {_operands(layer) for layer in layers if layer.name in names and is_product(layer)}
    return next((p for p in _BY_WIDTH if p in seen), None)


def is_product(layer: Layer) -> bool:
    """Says whether a layer multiplies matrices: a GEMM, a convolution or a fused attention."""
    return (
        layer.kind in _PRODUCTS or bool(FUSED_TACTIC.match(layer.tactic)) or bool(_PRODUCT_TACTIC.match(layer.tactic))
    )


def _operands(layer: Layer) -> str | None:
    """Returns the precision of a product's first operand; what else it reads may belong to a sum in its epilogue."""
    seen = [NAMES[tensor.dtype] for tensor in (*layer.inputs, *layer.outputs) if tensor.dtype in NAMES]
    return seen[0] if seen else None


def widest(layer: Layer) -> str | None:
    """Returns the widest floating-point type of a layer's tensors; None where it has none of those asked for."""
    seen = {NAMES.get(tensor.dtype) for tensor in (*layer.inputs, *layer.outputs)}
    return next((p for p in _BY_WIDTH if p in seen), None)
