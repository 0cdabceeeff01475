"""How many attention blocks a module computes: counted while PyTorch runs it, taken apart into plain operators.

A block is a softmax **whose input comes from a batched product of two activations and whose result goes into one**. So
the softmax of a classifier or of a router over experts is none (its scores come from a linear layer, whose operand is a
parameter, and its result weights a sum), nor is that of a dynamic convolution; one with a sink column, a mask, a
bias or a dropout between is. `scaled_dot_product_attention` is taken apart first and counts as the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from export.parity.rounding import taken_apart

_PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::matmul")
_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")
_ENDS = ("aten::mm", "aten::addmm", "aten::convolution", "aten::native_layer_norm", "aten::embedding")
"""Operators behind which a tensor is no longer scores or weights but something computed from them."""


@dataclass(frozen=True)
class Count:
    """What was seen.

    Attributes:
        blocks: Softmax attentions.
        others: Softmaxes that are no attention.
        peak: The mean of each attention's largest weight over that of uniform weights, the least spread block's:
            1 means uniform.
    """

    blocks: int
    others: int
    peak: float


class _Counter(TorchDispatchMode):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._alive: list[torch.Tensor] = []  # so that no id is given twice
        self._scores: set[int] = set()
        self._weights: dict[int, set[int]] = {}
        self._peaks: list[float] = []
        self.attention: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        read = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self._alive += made
        if name in _PRODUCTS:
            for x in read:
                self.attention |= self._weights.get(id(x), set())
            if not any(x.untyped_storage().data_ptr() in self._parameters for x in read[-2:]):
                self._scores |= {id(x) for x in made}
        elif name in _SOFTMAX:
            if any(id(x) in self._scores for x in read):
                self._weights[id(made[0])] = {len(self._peaks)}
            self._peaks.append(_peak(made[0]))
        elif name not in _ENDS:
            if any(id(x) in self._scores for x in read):
                self._scores |= {id(x) for x in made}
            held = set().union(*(self._weights.get(id(x), set()) for x in read))
            if held:
                self._weights |= {id(x): held for x in made}
        return result

    def count(self) -> Count:
        peaks = [self._peaks[i] for i in self.attention]
        return Count(len(self.attention), len(self._peaks) - len(self.attention), min(peaks, default=0.0))


def _peak(weights: torch.Tensor) -> float:
    """Mean largest weight, times the number of keys that have any weight."""
    if not weights.numel():
        return 0.0
    keys = (weights > 0).sum(-1)
    seen = keys > 1
    return float((weights.amax(-1) * keys)[seen].mean()) if bool(seen.any()) else float(weights.shape[-1])


def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Count:
    """Returns how many attention blocks a module computes on these inputs."""
    counter = _Counter(module)
    with torch.no_grad(), taken_apart(), counter:
        module(*inputs)
    return counter.count()
