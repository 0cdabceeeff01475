"""A model that brings its cache along: past tensors among its inputs, present tensors among its outputs.

A pair is known by the graph (an output is the Concat of an input and something new, or the present of an attention
whose past is that input) or else by its names: `past` in the input's, `present` in the output's in its place.
"""

import onnx_ir as ir

from engines.decoding import Cache
from export.decode.grow import Step
from export.decode.tokens import refused
from export.graph.shapes import infer
from export.graph.values import dim, dims, made_by, rank

_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def given(fused: ir.Model) -> Step | None:
    """Returns a fused model as a step, or None where it has no past and present.

    Raises:
        UsageError: It has, and they or its tokens are not what a step needs.
    """
    model = fused.clone()
    infer(model)
    graph = model.graph
    caches = [cache for value in graph.inputs if (cache := _cache(value, graph)) is not None]
    if not caches:
        return None
    pasts = {cache.past for cache in caches}
    others = [v for v in graph.inputs if v.name not in pasts and v.name not in graph.initializers]
    masks = [v for v in others if "mask" in str(v.name).lower()]
    tokens = [v for v in others if v not in masks and (rank(v) or 0) >= 2]
    if not tokens or len(masks) > 1:
        raise refused("beside its past tensors it needs inputs that hold tokens, and one padding mask at most.")
    fixed = [str(v.name) for v in tokens if isinstance(dim(v, 1), int)]
    if fixed:
        raise refused(f"{', '.join(fixed)} has a fixed number of tokens; export it with that axis free.")
    length = dim(tokens[0], 1)
    tokens = [v for v in tokens if dim(v, 1) == length]
    return Step(model, tuple(str(v.name) for v in tokens), str(masks[0].name) if masks else None, tuple(caches))


def _cache(value: ir.Value, graph: ir.Graph) -> Cache | None:
    for output in graph.outputs:
        named = "past" in str(value.name) and str(output.name) in _presents(str(value.name))
        if _source(output) is not value and not named:
            continue
        before, after = dims(value), dims(output)
        if before is None or after is None or len(before) != len(after):
            raise refused(
                f"the shapes of {value.name!r} {value.shape} and {output.name!r} {output.shape} do not tell its axis."
            )
        axes = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if len(axes) == 1 and isinstance(before[axes[0]], str):
            return Cache(str(value.name), str(output.name), axes[0])
        raise refused(f"{value.name!r} {value.shape} does not grow to {output.name!r} {output.shape} along one axis.")
    return None


def _presents(past: str) -> tuple[str, ...]:
    return (past.replace("past_key_values", "present"), past.replace("past", "present"), past.replace("past", "new"))


def _source(output: ir.Value) -> ir.Value | None:
    """Returns the value that an output is the continuation of, or None."""
    made = _unmoved(output)
    node = made.producer() if made is not None else None
    if node is None or made is None:
        return None
    at = made.index()
    if node.op_type == "Attention" and at in (1, 2) and len(node.inputs) > 5:
        return _unmoved(node.inputs[at + 3])
    return _unmoved(node.inputs[0]) if node.op_type == "Concat" else None


def _unmoved(value: ir.Value | None) -> ir.Value | None:
    while (node := made_by(value, *_MOVES)) is not None:
        value = node.inputs[0]
    return value
