"""The copy that is worked on: attention out of its functions, every name once, shapes known, constants computed.

A function stays a function where nothing of an attention can be in it (a norm, an activation): somebody may have given
it a kernel of its own. Where that keeps an attention from being read, the whole model is inlined and read again.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from export.graph import shapes
from export.graph.functions import inline
from export.graph.laws import fold_all, spell_softmaxes
from export.graph.values import Refusal, graphs, label

_OF_ATTENTION = {
    "Softmax", "Exp", "MatMul", "Gemm", "Einsum", "Attention", "RotaryEmbedding", "Where", "Concat", "Neg", "Cos",
    "Sin", "Reshape", "Transpose", "Expand", "Tile", "Slice", "Split", "Gather", "Unsqueeze", "Squeeze",
}  # fmt: skip
"""Operators of products, masks, rotations and layouts: a function with one of them may be part of an attention."""


def prepared(model: ir.Model, *, whole: bool) -> ir.Model:
    """Returns a copy of the model to fuse in.

    Constants are computed once, in their own precision, for both sides of the verification.

    Args:
        model: Not changed.
        whole: Whether every function is inlined, and not only those that may hold a part of an attention.
    """
    with collector_paused():
        base = model.clone()
        inline(base, lambda function: whole or _may_hold_attention(function, base))
        _tell_apart(base)
        shapes.infer(base)
        fold_all(base)
        spell_softmaxes(base)
    return base


def unreachable(model: ir.Model) -> list[tuple[ir.Node, Refusal]]:
    """Returns each Softmax in a function that could not be inlined, and why it stays."""
    return [
        (
            node,
            Refusal(
                "K903",
                f"{label(node)} stands in the function {function.domain}::{function.name}, which cannot be inlined: "
                "its opsets are not the model's, or an attribute of it is a graph.",
            ),
        )
        for function in model.functions.values()
        for node in function.graph.all_nodes()
        if node.op_type == "Softmax" and node.domain == ""
    ]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's cycle collector: it would walk the whole graph for every few thousand nodes that are made."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextmanager
def collector_sees_new() -> Iterator[None]:
    """Lets the collector walk only what is made from now on: verifying makes little, beside models that stay.

    Where the caller has frozen objects himself, nothing is done, for they would be freed with ours.
    """
    free = not gc.get_freeze_count()
    if free:
        gc.freeze()
    try:
        yield
    finally:
        if free:
            gc.unfreeze()


def _may_hold_attention(function: ir.Function, model: ir.Model) -> bool:
    nodes = list(function.graph.all_nodes())
    called = [model.functions[n.op_identifier()] for n in nodes if n.op_identifier() in model.functions]
    return any(n.op_type in _OF_ATTENTION for n in nodes) or any(_may_hold_attention(f, model) for f in called)


def _tell_apart(model: ir.Model) -> None:
    """Gives tensors, and what blocks are told apart by, names of their own: two branches may use one name each."""
    tensors: set[str | None] = {None, ""}
    nodes: set[str | None] = {None, ""}
    for graph in graphs(model):
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            if value.name and value.name in tensors and value not in graph.initializers.values():
                value.name = _free(value.name, tensors)
            tensors.add(value.name)
    for graph in graphs(model):
        for node in graph:
            if node.op_type in ("Softmax", "Attention", "RotaryEmbedding"):
                node.name = node.outputs[0].name if node.name in nodes else node.name
                nodes.add(node.name)


def _free(name: str, taken: set[str | None]) -> str:
    number = 1
    while f"{name}/{number}" in taken:
        number += 1
    return f"{name}/{number}"
