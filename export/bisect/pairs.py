"""Which tensor of B is which of A: one name, and for a module the scope that the exporter recorded of each node.

An output is also paired by its place where no output keeps its name. Names an exporter counts up (`val_12`) may meet by
chance in two exports; such a pair has another shape, or everything after it agrees, and `search` leaves it out.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from export.bisect.tensors import Tensors

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of the dynamo exporter: the module paths a node is in, outermost first, and the operator's own name."""

_SCOPED = re.compile(r"/(?P<path>.+)/[^/]+")
"""A node's name as TorchScript's exporter writes it: /encoder/layer.0/attention/MatMul."""


@dataclass(frozen=True)
class Pair:
    """One tensor in both.

    Attributes:
        key: What A calls it: a tensor, or the path of a module.
        name: What B calls it.
    """

    key: str
    name: str


def by_name(a: Tensors, b: Tensors) -> list[Pair]:
    """Returns the pairs in the order of B's graph; outputs of the graphs are among them."""
    outputs = dict(zip(b.outputs, _outputs(a, b), strict=True))
    found = [Pair(outputs.get(name, name), name) for name in b.values if name in a.values or name in outputs]
    return [pair for pair in found if pair.key in a.values]


def _outputs(a: Tensors, b: Tensors) -> tuple[str, ...]:
    if set(a.outputs) & set(b.outputs) or len(a.outputs) != len(b.outputs):
        return b.outputs
    return a.outputs


def by_module(paths: Iterable[str], export: Tensors, b: Tensors) -> list[Pair]:
    """Returns a pair for each module whose output is one tensor of B, in the order of B's graph, and B's outputs.

    Args:
        paths: The modules' paths.
        export: The module's own export, whose scopes are complete: what a fuser wrote has none.
        b: The other graph; where it does not keep the export's name, its own scopes are read.
    """
    ours, theirs = exits(export.model.graph), exits(b.model.graph)
    found: dict[str, str] = {}
    for path in paths:
        if path not in ours:
            continue  # several tensors leave it: it is called more than once, and B may have lost all calls but one
        name = ours[path] if ours[path] in b.values else theirs.get(path)
        if name is not None and name in b.values:
            found[name] = path
    order = {name: at for at, name in enumerate(b.values)}
    inner = [Pair(path, name) for name, path in sorted(found.items(), key=lambda item: order[item[0]])]
    return [*inner, *(Pair(f"#{at}", name) for at, name in enumerate(b.outputs))]


def exits(graph: ir.Graph) -> dict[str, str]:
    """Returns the one tensor that leaves each module, by the module's path; modules with several are left out."""
    leaving: dict[str, dict[str, None]] = {}
    for node in graph:
        scopes = _scopes(node)
        for value in node.outputs:
            if value.dtype is not None and not value.dtype.is_floating_point():
                continue  # sizes and positions are computed once, for whatever module
            users = [_scopes(user) for user, _ in value.uses()]
            for scope in scopes:
                if value.is_graph_output() or any(scope not in user for user in users):
                    leaving.setdefault(scope, {})[str(value.name)] = None
    return {scope: next(iter(names)) for scope, names in leaving.items() if len(names) == 1}


def scope(node: ir.Node) -> str:
    """Returns the path of the innermost module a node is in; "" where nothing was recorded."""
    return next(iter(sorted(_scopes(node), key=len, reverse=True)), "")


def _scopes(node: ir.Node) -> set[str]:
    recorded = node.metadata_props.get(SCOPES)
    if recorded:
        try:
            return {str(path) for path in ast.literal_eval(recorded)[:-1] if path}
        except (ValueError, SyntaxError):
            return set()
    match = _SCOPED.fullmatch(node.name or "")
    if match is None:
        return set()
    words = match["path"].split("/")
    return {".".join(words[: at + 1]) for at in range(len(words))}
