"""What one spelling of attention is: a function or module, what becomes of it, and how the heads are split.

Every function takes some of
    q [B, 4, S, 8]  k, v [B, 4, T, 8]  m bool [B, 1, S, T], True = attend  f [B, 1, S, T] added  x [B, S, 32]
    pad [B, S], kpad [B, T] bool, True = attend  gk, gv [B, 2, T, 8], two heads shared by four.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

INF, D, HEADS = float("-inf"), 8, 4
SCALE = D**-0.5


@dataclass(frozen=True)
class Spelling:
    """One spelling and what becomes of it.

    Attributes:
        call: The function, or a module class.
        expect: "fused", or the code it stays with, or "nothing" where there is no Softmax to find.
        mask, scale, softcap, kv_heads, rope: What the fused op's row says.
        half: It is run in float16.
        dynamo: It is one of those that the dynamo exporter always gets, not only among the slow tests.
        library: It calls the library's attention, which is one op on arrival where the opset has one (23).
        traced: The mask of the row where the dynamo exporter wrote the graph, if its sizes and operators prove another.
        fixed: The TorchScript exporter writes the sizes of the example into the graph.
    """

    call: Callable[..., Tensor | tuple[Tensor, Tensor]]
    expect: str = "fused"
    mask: str = "none"
    scale: float = SCALE
    softcap: float | None = None
    kv_heads: int = HEADS
    rope: str = "none"
    half: bool = False
    dynamo: bool = False
    library: bool = False
    fixed: bool = False
    traced: str | None = None

    @property
    def name(self) -> str:
        return self.call.__name__

    def module(self) -> nn.Module:
        if isinstance(self.call, type):
            torch.manual_seed(0)
            made = self.call()
        else:
            made = _Function(self.call)
        return (made.half() if self.half else made).eval()


class _Function(nn.Module):
    """A function as a module whose forward has the function's own parameters: torch.export reads their names."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.forward = function


class Spellings(list[Spelling]):
    """The spellings of one file, in order."""

    def add(self, **facts) -> Callable:
        def register(call):
            self.append(Spelling(call, **facts))
            return call

        return register


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)
