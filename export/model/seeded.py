"""How a form's weights are drawn: seeded, without touching the caller's random state, at unit scale."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def seeded(build: Callable[[], ModuleT], seed: int = 0) -> ModuleT:
    """Returns `build()` in eval mode, float32, with weights that depend on `seed` alone.

    Matrices are N(0, 1/fan_in), so that unit inputs give unit queries and keys and the softmax is neither flat nor
    saturated (PyTorch's default is a third of that in variance: a wrong scale would hardly show). Vectors are
    N(0, 0.1), so that a bias that goes missing shows too.
    """
    module = build()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * spread)
    return module.eval()
