"""The machine's two ceilings, measured in the same run: a large matrix product and a large copy."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIDE = 768
COPIED = 256 * 2**20
SECONDS = 0.7
"""How long each is tried: the fastest try counts, since what else the machine does can only slow one down."""


@dataclass(frozen=True)
class Ceilings:
    """What this machine does at best with the given threads.

    Attributes:
        flops_per_second: Of a float32 matrix product of 768 x 768 random numbers.
        bytes_per_second: Of a copy of 256 MiB, the bytes read and those written both counted.
    """

    flops_per_second: float
    bytes_per_second: float


def measured(threads: int, seconds: float | None = None) -> Ceilings:
    """Returns the two ceilings on the CPU, each from its fastest try.

    Args:
        threads: Threads of PyTorch and of ONNX Runtime; the faster of the two counts.
        seconds: How long each of them is tried; None means SECONDS.
    """
    import numpy as np
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
        product = torch.empty(SIDE, SIDE)
        source, target = torch.ones(COPIED // 4), torch.empty(COPIED // 4)
        arrays = source.numpy(), target.numpy()
        products = (lambda: torch.mm(a, b, out=product), _ort_product(a.numpy(), b.numpy(), threads))
        copies = (lambda: target.copy_(source), lambda: np.copyto(arrays[1], arrays[0]))
        limit = SECONDS if seconds is None else seconds
        gemm = min(_fastest(call, limit) for call in products)
        copy = min(_fastest(call, limit) for call in copies)
    finally:
        torch.set_num_threads(before)
    return Ceilings(2 * SIDE**3 / gemm, 2 * COPIED / copy)


def _ort_product(a: Any, b: Any, threads: int) -> Callable[[], object]:
    import onnx_ir as ir

    from export.bench.ort_contenders import opened

    side = f"float[{SIDE},{SIDE}]"
    head = '<ir_version: 10, opset_import: ["": 20]>'
    model = ir.from_onnx_text(f"{head}\ng ({side} a, {side} b) => ({side} c) {{ c = MatMul(a, b) }}")
    return opened(bytes(ir.to_proto(model).SerializeToString()), {"a": a, "b": b}, threads).call


def _fastest(call: Callable[[], object], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or best == float("inf"):
        call()
        best = min(best, time.perf_counter() - start)
    return best
