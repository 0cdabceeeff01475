"""The plugin operator as data: the name under which a graph holds it, shared by lowering, kernels and refusals.

Full TensorRT alone can run it. TensorRT-RTX has no plugins, so a graph that holds the operator is refused before its
parser sees it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PluginOp:
    """One plugin operator.

    Attributes:
        domain: ONNX domain of the node, and plugin namespace in TensorRT.
        name: ONNX op type, and plugin name in TensorRT.
        version: Opset version of the domain.
        summary: What it computes, in one line.
    """

    domain: str
    name: str
    version: int
    summary: str


ROTARY_ATTENTION = PluginOp(
    domain="attnproof",
    name="RotaryAttention",
    version=1,
    summary="RoPE on Q and optionally K, mask and attention in one kernel",
)
OPS = (ROTARY_ATTENTION,)


def find(domain: str, name: str) -> PluginOp | None:
    """Returns the plugin operator of that ONNX domain and op type, or None."""
    return next((op for op in OPS if (op.domain, op.name) == (domain, name)), None)
