"""The ladder: every attention is read, goes through the steps in order, and is written back if one of them applied."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx_ir as ir

from engines import dimension
from export.errors import UsageError
from export.graph.build import Builder
from export.graph.opset import raise_opset
from export.graph.shapes import infer
from export.graph.values import Dim, graphs
from export.lower.cache import lower_cache
from export.lower.call import Call, read, take_place, write
from export.lower.decompose import lower_precision, lower_whole, write_decomposed
from export.lower.extremes import lower_extremes
from export.lower.heads import merge
from export.lower.islands import cast_back
from export.lower.layout import lower_layout, place_output, sweep
from export.lower.lengths import count_out, lower_lengths, write_counted
from export.lower.marks import lower_mark, unmark
from export.lower.masks import lower_mask, refuse_ambiguous
from export.lower.padding import LENGTHS_OPSET, lower_padding
from export.lower.plugin import lower_plugin, plug_out, write_plugin
from export.lower.refuse import refuse_call, refuse_model
from export.lower.rotary import lower_rotary
from export.lower.scale import lower_scale
from export.lower.scores import lower_scores, masked
from export.lower.share import share
from export.lower.single_head import lower_single_head, swap
from export.lower.size_reads import read_sizes_early
from export.lower.sizes import lower_sizes, unpad
from export.lower.step import Step
from export.lower.structure import lower_structure
from export.lower.targets import ONNX, TARGETS, Target
from export.lower.unshare import unshare
from export.lower.value_type import lower_value_type

_LADDER: tuple[Callable[[Call, Target, Builder], tuple[Call, tuple[Step, ...]]], ...] = (
    lower_value_type,
    lower_plugin,
    lower_scale,
    lower_cache,
    lower_sizes,
    lower_precision,
    lower_scores,
    lower_whole,
    lower_lengths,
    lower_structure,
    lower_extremes,
    lower_padding,
    lower_mask,
    lower_single_head,
    lower_mark,
    lower_layout,
)
"""In this order: what becomes a plugin node needs no other step; the cache fixes the lengths, sizes and precision
decide what is written out, masks come after them."""


LOWERED_FOR = "attnproof.lowered_for"
"""Metadata of an Attention that has been through the ladder: going through again would guard the guards."""


@dataclass(frozen=True)
class Lowered:
    """A model as one target reads it right.

    Attributes:
        model: The lowered model.
        steps: What was done, in the order of the graph.
    """

    model: ir.Model
    steps: tuple[Step, ...]


def lower(
    model: ir.Model,
    target: str,
    attention: str = "native",
    precision: ir.DataType | None = None,
    usual: Mapping[str, int] = MappingProxyType({}),
) -> Lowered:
    """Returns `model` rewritten so that `target` computes what ONNX says.

    Args:
        model: Any ONNX model, fused or not; not changed. Without `ai.onnx::Attention` and RotaryEmbedding it comes back
            as it is.
        target: A name in `TARGETS`.
        attention: "native", where the plugin operator stands in only for what the target does not compute itself, or
            "plugin", where it takes every attention it can.
        precision: What the graph was asked to compute in: an attention left in float32 is cast back to it where the
            target's fused kernels need that. None leaves each in its own type.
        usual: Sizes of symbolic dimensions in the usual call, where they are known: what is a matter of speed
            alone goes by them.

    Raises:
        UsageError: There is no such target, or it takes no plugins and "plugin" was asked for.
        LoweringRefusedError: The target would refuse the graph or read it silently wrong, and no step can prevent it.
    """
    row = TARGETS.get(target)
    if row is None:
        raise UsageError(f"There is no target {target!r}; choose one of {', '.join(TARGETS)}.")
    if attention == "plugin":
        if row.plugin not in ("refused", "always"):
            raise UsageError(f"{row.title} takes no plugins; --attention plugin needs --target tensorrt.")
        row = replace(row, plugin="always")
    lowered = model.clone()
    if row is ONNX:
        return Lowered(lowered, ())
    steps = [*_inline(lowered, row), *(plug_out(lowered, row.title) if row.plugin == "function" else ())]
    refuse_model(lowered, row)
    found = [n for g in graphs(lowered) for n in g if n.domain == "" and n.op_type in ("Attention", "RotaryEmbedding")]
    if any(v is not None and (v.shape is None or v.dtype is None) for n in found for v in n.inputs):
        infer(lowered)
    if row.flat and found:
        _read_sizes(lowered)
        found = [node for node in found if node.graph is not None]  # one that nothing reads is swept away
    names, older = _names(lowered), {id(n) for g in graphs(lowered) for n in g}
    found, narrowed = cast_back(
        found, row, precision, lambda n: _free(f"{n.name or n.outputs[0].name}/{row.name}", names)
    )
    steps += narrowed
    for node in found:
        build = Builder(node, _free(f"{node.name or node.outputs[0].name}/{row.name}", names))
        if node.op_type == "RotaryEmbedding":
            steps.extend(lower_rotary(node, row, build))
        else:
            steps.extend(_lower_attention(node, row, build, inner=node.graph is not lowered.graph, usual=usual))
    if steps:
        if row.flat:
            _read_sizes(lowered)
        share(lowered, older)
        for graph in graphs(lowered):
            sweep(graph)
        if any(step.action == "count keys" for step in steps) and row.flat:
            raise_opset(lowered, LENGTHS_OPSET)
    attentions = [n for g in graphs(lowered) for n in g if n.domain == "" and n.op_type == "Attention"]
    prefixes = {n: _free(f"{n.name or n.outputs[0].name}/{row.name}", names) for n in attentions}
    steps.extend(unshare(lowered, row, prefixes))
    return Lowered(lowered, tuple(steps))


def _read_sizes(model: ir.Model) -> None:
    for graph in graphs(model):
        if read_sizes_early(graph):
            sweep(graph)


def for_ort_check(model: ir.Model) -> ir.Model:
    """Returns a model lowered for any target as ONNX Runtime's CPU provider runs it, without the TensorRT marks.

    The numbers are those of the lowered graph: what is added is what ONNX Runtime needs to read it (expanded masks).

    Raises:
        LoweringRefusedError: ONNX Runtime cannot run the graph.
    """
    plain = model.clone()
    unmark(plain)
    plug_out(plain, "ONNX Runtime")
    count_out(plain)
    return lower(plain, "ort").model


def _write(call: Call, build: Builder) -> tuple[ir.Value, ir.Value | None]:
    if call.plugin:
        return write_plugin(call, build), None
    if call.counted:
        return write_counted(call, build), None
    return write_decomposed(call, build) if call.decomposed else write(call, build)


def _inline(model: ir.Model, row: Target) -> list[Step]:
    if not model.functions:
        return []
    from export.graph.functions import inline

    count = inline(model)
    if not count:
        return []
    why = f"{row.title} is given plain nodes, because a function's name may be an operator's."
    return [Step(model.graph.name or "model", f"inline {count} functions", why)]


def _size(length: Dim | None, usual: Mapping[str, int]) -> int | None:
    """Returns a length where every name in it has a size."""
    if length is None or any(name not in usual for name in dimension.names(length)):
        return None
    return dimension.value(length, usual)


def _names(model: ir.Model) -> set[str]:
    return {n.name or "" for g in graphs(model) for n in g}


def _free(prefix: str, names: set[str]) -> str:
    """Returns a prefix that no node's name begins with, and takes it."""
    free, number = prefix, 1
    while free in names or any(n.startswith(f"{free}/") for n in names):
        number += 1
        free = f"{prefix}.{number}"
    names.add(free)
    return free


def _lower_attention(
    node: ir.Node, row: Target, build: Builder, *, inner: bool, usual: Mapping[str, int]
) -> list[Step]:
    call = replace(read(node), inner=inner)
    call = replace(call, usual_keys=_size(call.new_keys, usual))
    refuse_call(call, row)
    refuse_ambiguous(call)
    if node.metadata_props.get(LOWERED_FOR) == row.name:
        return []
    three_axes = call.heads is not None
    steps: list[Step] = []
    for rung in _LADDER:
        call, done = rung(call, row, build)
        steps.extend(done)
        if call.plugin:
            break
    if not steps:
        return steps
    output, scores = _write(call, build)
    made = output.producer()
    if made is not None:
        made.metadata_props[LOWERED_FOR] = row.name
    if call.swapped:
        output = swap(output, build)
    if call.value_size is not None:
        output = unpad(output, call.value_size, build)
    if call.attends is not None:  # a selection, not a product: what the target gives on such a row may be NaN
        output = build("Where", call.attends, output, build.number(0.0, call.dtype), dtype=call.dtype)
    if three_axes and call.heads is None:
        output = merge(output, build)
    if call.heads is not None and not three_axes:
        place_output(node.outputs[0], output, call.heads[0], build)
    else:
        take_place(node.outputs[0], output)
    if scores is not None:
        take_place(node.outputs[3], masked(scores, call, build))
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return steps
