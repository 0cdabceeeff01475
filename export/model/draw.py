"""How the weights and inputs of a form are drawn: seeded, in float32, masks by the case's padding."""

from collections.abc import Callable
from typing import TypeVar

import torch

from engines.errors import UsageError
from export.model.form import Case

M = TypeVar("M", bound=torch.nn.Module)

PADDINGS = ("none", "right", "left", "full-row")
"""Every padding a case may name."""


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    """Returns build() in eval mode with weights drawn from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def generator(case: Case) -> torch.Generator:
    """Returns the random generator of a case."""
    return torch.Generator().manual_seed(case.seed)


def normal(case: Case, rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Returns a float32 tensor of `shape`, standard normal times the case's magnitude."""
    return torch.randn(*shape, generator=rng) * case.magnitude


def keep_mask(padding: str, batch: int, length: int, rng: torch.Generator) -> torch.Tensor:
    """Returns which keys may be attended to, bool [B, S] with True = keep.

    "right" and "left" pad each batch row by its own amount and leave at least one key (row 0 is padded as far as
    that allows, so that a batch of one is padded too); "full-row" is "right" with the last batch row wholly hidden.

    Raises:
        UsageError: The padding is not one of `PADDINGS`.
    """
    if padding not in PADDINGS:
        raise UsageError(f"Padding '{padding}' is unknown. Use one of: {', '.join(PADDINGS)}.")
    if padding == "none":
        return torch.ones(batch, length, dtype=torch.bool)
    lengths = torch.randint(1, length + 1, (batch,), generator=rng)
    lengths[0] = max(1, length - max(1, length // 3))
    if padding == "full-row":
        lengths[-1] = 0
    positions = torch.arange(length)
    if padding == "left":
        return positions >= length - lengths[:, None]
    return positions < lengths[:, None]
