"""A callable's result where no step is rounded, but its constants are those it makes at its narrow dtype.

A runtime may keep a half-precision graph's scores in float32 from one step to the next: ONNX Runtime's CPU provider has
no float16 kernels for most operators. There an added fill of finfo(float16).min does not swallow the score, and a row
that sees no key gets softmax(s) for weights, not equal ones. The module in float64 does not show this, for its fill is
finfo(float64).min. So the target runs at its dtype, and each tensor has a float64 shadow that takes the same steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from export.parity import rounding


def unabsorbed(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, seed: int | None = None
) -> Any:
    """Returns the target's result with its floating-point tensors in float64.

    Args:
        target: A module at the dtype under test, or a function.
        args: Its positional arguments at that dtype.
        kwargs: Its named arguments, likewise.
        seed: Seed of the moves, where each result is to be moved by up to one unit in the last place of the dtype that
            the target itself has there, as in `export.parity.rounding.rounded`; mask fills and sums with them are not.
    """
    mode = _Shadows(None if seed is None else torch.Generator().manual_seed(seed))
    with torch.no_grad(), rounding.taken_apart(), mode:
        value = target(*args, **kwargs)
    return tree_map(mode.shadow, value)


class _Shadows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes each step twice: at the dtype, and in float64 on the shadows."""

    def __init__(self, noise: torch.Generator | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noise = noise
        self._shadows: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        made = not any(_floating(x) for x in tree_leaves((args, kwargs)))
        wide_args, wide_kwargs = tree_map(self._widened, (args, kwargs))
        result = func(*args, **kwargs)
        if made:  # a constant or a cast of integers is what it is at the dtype
            return result
        wide = func(*wide_args, **wide_kwargs)
        for narrow, shadow in zip(tree_leaves(result), tree_leaves(wide), strict=True):
            if _floating(narrow):
                self._shadows[narrow] = self._taken(func, narrow, shadow)
        return result

    def shadow(self, x: Any) -> Any:
        """Returns the float64 shadow of a floating-point tensor; anything else as it is."""
        if not _floating(x):
            return x
        if x not in self._shadows:
            self._shadows[x] = x.double()
        return self._shadows[x]

    def _widened(self, x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return torch.float64 if x.is_floating_point else x
        return self.shadow(x)

    def _taken(self, func: Any, narrow: torch.Tensor, shadow: torch.Tensor) -> torch.Tensor:
        if func._schema.name == "aten::_to_copy":  # a cast that the target asks for ends at the dtype's range
            return torch.where(narrow.isinf(), narrow.double(), shadow)
        if self._noise is None or not rounding.computes(func):
            return shadow
        moved = rounding.shaken(shadow, self._noise, like=narrow.dtype)
        return shadow.copy_(moved) if func._schema.is_mutable else moved


def _floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()
