"""Masked scores as an output: where a target shows them rightly before the mask only, the mask is added outside.

Scores after the mask are those before it, plus a bias, or -inf where a key is hidden; no attention has to be written
out for that.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import dim
from export.lower.call import Call
from export.lower.step import Step
from export.lower.targets import Target


def lower_scores(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Asks for the scores before the mask where the row does not show those after it (qk_matmul_output_mode 2)."""
    if call.score_mode != 2 or 2 in row.scores or 1 not in row.scores:
        return call, ()
    mask = call.keep if call.keep is not None else call.bias
    keys = dim(call.node.outputs[3], -1)
    counted = call.causal or call.window != (-1, -1) or call.lengths is not None
    if mask is None or counted or keys is None or dim(mask, -1) != keys:
        return call, ()
    if call.bias is not None and call.bias.dtype != call.dtype:
        return call, ()
    why = f"{row.title} shows masked scores with other numbers than ONNX says; before the mask it shows them rightly."
    call = replace(call, score_mode=1, shown=(call.keep, call.bias))
    return call, (call.said("mask the shown scores outside", why),)


def masked(scores: ir.Value, call: Call, build: Builder) -> ir.Value:
    """Returns the scores as the graph wants them shown."""
    if call.shown is None:
        return scores
    keep, bias = call.shown
    if bias is not None:
        scores = build("Add", scores, bias, dtype=scores.dtype, shape=scores.shape)
    if keep is not None:
        lowest = build.number(-np.inf, call.dtype)
        scores = build("Where", keep, scores, lowest, dtype=scores.dtype, shape=scores.shape)
    return scores
