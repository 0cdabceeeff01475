"""What is refused before a vendor's parser sees the file: it would crash, or build something else, or say less."""

from engines import compute_capability
from engines.errors import UsageError
from engines.graph import ForeignNode, Graph
from engines.profiles import Profile
from engines.vendor import Vendor
from plugins import contract

KNOWN = {"com.microsoft": ("Gelu", "GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding")}
"""Operators outside ONNX's domain that both parsers read with that domain's meaning."""


def check(graph: Graph, vendor: Vendor, sm: int, profile: Profile) -> tuple[ForeignNode, ...]:
    """Returns the nodes whose op type the parser must not know, since it would take them for its own.

    Args:
        graph: Facts of the ONNX file.
        vendor: Who will build.
        sm: Architecture to build for.
        profile: Shapes to build for.

    Raises:
        UsageError: The vendor cannot take the architecture, a dtype on it, a custom operator, or the profile's inputs.
        BackendMissingError: The vendor needs a GPU and there is none.
    """
    compute_capability.require(vendor, sm)
    compute_capability.refuse_dtypes(sm, graph.dtypes)
    for each in profile.all:
        _check_inputs(graph, each)
    foreign = tuple(n for n in graph.foreign if n.op not in KNOWN.get(n.domain, ()))
    if not vendor.plugins:
        for node in foreign:
            _refuse_custom(node, vendor)
    return foreign


def _refuse_custom(node: ForeignNode, vendor: Vendor) -> None:
    if node.function:
        return
    plugin = contract.find(node.domain, node.op)
    if plugin:
        raise UsageError(
            f"Node {node.name!r} is the plugin {node.domain}::{node.op} ({plugin.summary}), and {vendor.title} takes "
            "no plugins. Build with --target tensorrt, or lower the model for --target tensorrt-rtx without the plugin."
        )
    raise UsageError(
        f"Node {node.name!r} is {node.domain}::{node.op}, which is no ONNX operator, and {vendor.title} takes no "
        "plugins. Export it as ONNX operators, or give the model an ONNX function of that name."
    )


def _check_inputs(graph: Graph, profile: Profile) -> None:
    for spec in graph.inputs:
        given = profile.inputs.get(spec.name)
        if given is None:
            raise UsageError(
                f"The profile has no shapes for input {spec}; it has {', '.join(profile.inputs) or 'none'}."
            )
        for shape in (given.min, given.opt, given.max):
            fits = len(shape) == len(spec.shape) and all(
                isinstance(want, str) or want == size for want, size in zip(spec.shape, shape, strict=True)
            )
            if not fits:
                raise UsageError(f"The profile gives input {spec} the shape {'x'.join(map(str, shape))}; it cannot be.")
