"""Whether answers of a GPU run are right: some heads and queries of them, against float64 on the CPU.

The whole truth of the larger shapes would take longer than the run may: two batch rows, two heads of each and 32
queries, the first and the last among them, are compared with every key.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from export.bench import gpu_cases
from export.bench.contender import Outputs
from export.bench.shapes import Shape

if TYPE_CHECKING:
    import torch

    from export.parity import ParityReport

ROWS, HEADS, QUERIES = 2, 2, 32


def judged(shape: Shape, inputs: gpu_cases.Inputs, answers: Mapping[str, Outputs], dtype: str) -> "ParityReport":
    """Returns a row for every answer but the yardstick's.

    Args:
        shape: The attention.
        inputs: Those of the first set.
        answers: One output [B, H, S, D] for each contender, by name.
        dtype: What it was computed in.
    """
    import torch

    from export.parity import ParityReport, ParityRow, attention_truth
    from export.parity.result import FAIL, OK

    batches, heads, queries = (
        _spread(n, m) for n, m in ((shape.batch, ROWS), (shape.heads, HEADS), (shape.queries, QUERIES))
    )
    share = shape.heads // shape.kv_heads
    q = inputs.q[batches][:, heads].cpu().double()
    k, v = (t[batches][:, [h // share for h in heads]].cpu().double() for t in (inputs.k, inputs.v))
    if shape.family in gpu_cases.ROTATED:
        cos, sin = inputs.cos.cpu().double(), inputs.sin.cpu().double()
        q = _turned(q, cos[-shape.queries :], sin[-shape.queries :])
        k = k if shape.family == "decode" else _turned(k, cos, sin)
    cells = torch.arange(shape.key_count)
    keep = torch.ones(len(batches), 1, len(queries), shape.key_count, dtype=torch.bool)
    if shape.family == "causal":
        keep &= cells <= torch.tensor(queries)[:, None]
    if inputs.lengths is not None:
        keep &= (cells < inputs.lengths.cpu()[batches][:, None])[:, None, None]
    truth = attention_truth(q[:, :, queries].numpy(), k.numpy(), v.numpy(), mask=keep.numpy())
    rows = []
    for name, outputs in answers.items():
        if name == gpu_cases.UNPADDED:
            continue
        (found,) = outputs.values()
        chosen = np.asarray(found)[np.ix_(batches, heads, queries)].astype(np.float64)
        used = max(truth.ratio(chosen, dtype, fused=name.startswith("attnproof")))
        error = float(np.abs(chosen - truth.output).max())
        reason = "" if used <= 1 else f"Its error is {used:.3g} times what {dtype} allows this attention."
        rows.append(ParityRow(shape.name, name, OK if used <= 1 else FAIL, error, None, used, reason=reason))
    return ParityReport(tuple(rows), dtype)


def _spread(size: int, most: int) -> list[int]:
    """Returns at most `most` places of 0 .. size - 1, evenly spread, the first and the last among them."""
    return sorted({round(i * (size - 1) / max(min(most, size) - 1, 1)) for i in range(min(most, size))} | {size - 1})


def _turned(t: "torch.Tensor", cos: "torch.Tensor", sin: "torch.Tensor") -> "torch.Tensor":
    import torch

    one, two = t.chunk(2, -1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)
