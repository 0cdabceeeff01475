"""The attentions of the shape sets in float64, and whether an answer is within the bound that float32 can keep."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from export.bench import cases
from export.bench.contender import Outputs
from export.bench.shapes import Shape

if TYPE_CHECKING:
    import torch

    from export.parity import ParityReport


def judged(shape: Shape, inputs: "Mapping[str, torch.Tensor]", answers: Mapping[str, Outputs]) -> "ParityReport":
    """Returns a row for every answer; the bound is that of one attention, computed from its scores and weights.

    Args:
        shape: The attention.
        inputs: float32 inputs by name.
        answers: One output [B, S, H * D] for each contender.
    """
    from export.parity import ParityReport, ParityRow, attention_truth
    from export.parity.result import FAIL, OK

    q, k, v = cases.split(shape, {name: x.double() for name, x in inputs.items()})
    if shape.family == "causal":
        q, k = cases.rotated(shape, q, k)
    mask = inputs.get("attention_mask")
    keep = None if mask is None else mask.bool()[:, None, None, :].numpy()
    truth = attention_truth(q.numpy(), k.numpy(), v.numpy(), mask=keep, causal=shape.family == "causal")
    exact = np.moveaxis(truth.output, 1, 2).reshape(shape.batch, shape.queries, -1)
    rows = []
    for name, outputs in answers.items():
        (found,) = outputs.values()
        if found.shape != exact.shape:
            reason = f"Its output is {list(found.shape)}; it should be {list(exact.shape)}."
            rows.append(ParityRow(shape.name, name, FAIL, reason=reason))
            continue
        heads = np.moveaxis(found.reshape(shape.batch, shape.queries, shape.heads, -1), 2, 1)
        used = max(truth.ratio(heads, "fp32", fused=True))
        error = float(np.abs(found - exact).max())
        reason = "" if used <= 1 else f"Its error is {used:.3g} times what float32 allows this attention."
        rows.append(ParityRow(shape.name, name, OK if used <= 1 else FAIL, error, None, used, reason=reason))
    return ParityReport(tuple(rows), "fp32")
