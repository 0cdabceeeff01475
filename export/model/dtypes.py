"""How a form widens a tensor: never below float32, and never down from float64."""

import torch


def upcast(x: torch.Tensor) -> torch.Tensor:
    """Returns x in at least float32: half and bfloat16 become float32, float32 and float64 stay.

    Where upstream code says `x.float()`, the forms say this, so that the float64 reference stays float64.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
