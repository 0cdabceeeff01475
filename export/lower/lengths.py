"""Valid lengths alone: where the target counts keys itself, they need no mask.

TensorRT's own operator TRT_Attention takes the number of valid keys of each batch row, and is fused with it. Beside a
mask it drops them without a word, and what it gives on a row without any key is not known: so it gets them only alone,
and only where the graph promises at least one key a row.
"""

from dataclasses import replace

import onnx_ir as ir

from export.graph.build import Attribute, Builder
from export.graph.values import dim, graphs
from export.lower.call import TRT_MARK, Call
from export.lower.heads import split
from export.lower.step import Step
from export.lower.targets import Target

POSITIVE = "attnproof.valid_keys"
"""Metadata of an Attention node each of whose rows has a valid key."""

_OP = "TRT_Attention"
_LENGTHS = 5
"""Place of the lengths among the operator's inputs: after Q, K, V, the mask and the lengths of the queries."""


def lower_lengths(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Gives the target the valid lengths as such, where it honours them on this attention."""
    alone = not call.masked and not call.causal and call.window == (-1, -1) and call.past is None
    if "kv_lengths" not in row.extras or call.lengths is None or not alone or call.decomposed:
        return call, ()
    if POSITIVE not in call.node.metadata_props or call.score_mode is not None or call.softcap:
        return call, ()
    call = replace(split(call, build), counted=True)
    return call, (call.said("count keys", f"{row.title} counts the valid keys itself, on {_OP}: no mask is needed."),)


def write_counted(call: Call, build: Builder) -> ir.Value:
    """Inserts the TRT_Attention node that `call` says and returns its output.

    One query stands at the last valid key; `lower_right` says so where there are more.
    """
    attributes: dict[str, Attribute] = {"causal_kind": "lower_right"} if dim(call.query, 2) == 1 else {}
    if call.scale is not None:
        attributes["scale"] = call.scale
    if call.marked:
        attributes[TRT_MARK] = 1
    inputs = [call.query, call.key, call.value, None, None, call.lengths]
    return build.node(_OP, inputs, attributes, dtypes=(call.dtype,), name=call.name).outputs[0]


def count_out(model: ir.Model) -> None:
    """Writes every TRT_Attention of a model as the standard operator with the same meaning, in place."""
    for graph in graphs(model):
        for node in graph:
            if node.op_type != _OP or node.domain:
                continue
            lengths = node.inputs[_LENGTHS]
            node.op_type = "Attention"
            node.attributes.pop("causal_kind", None)
            node.resize_inputs(7)
            node.replace_input_with(_LENGTHS, None)
            node.replace_input_with(6, lengths)
