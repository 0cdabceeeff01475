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


def judged(
    shape: Shape, inputs: "Mapping[str, torch.Tensor]", answers: Mapping[str, Outputs], dtype: str = "fp32"
) -> "ParityReport":
    """Returns a row for every answer; the bound is that of one attention, computed from its scores and weights.

    Args:
        shape: The attention.
        inputs: float32 inputs by name.
        answers: One output [B, S, H * D] for each contender.
        dtype: What it was computed in.
    """
    from export.parity import ParityReport, ParityRow, attention_truth
    from export.parity.result import FAIL, OK

    q, k, v = cases.split(shape, {name: x.double() for name, x in inputs.items()})
    if shape.family == "causal":
        q, k = cases.rotated(shape, q, k)
    mask = cases.keep(shape, inputs)
    keep = None if mask is None else mask[:, None, None, :].numpy()
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
        used = max(truth.ratio(heads, dtype, fused=True))
        error = float(np.abs(found.astype(np.float64) - exact).max())
        reason = "" if used <= 1 else f"Its error is {used:.3g} times what {dtype} allows this attention."
        rows.append(ParityRow(shape.name, name, OK if used <= 1 else FAIL, error, None, used, reason=reason))
    return ParityReport(tuple(rows), dtype)
