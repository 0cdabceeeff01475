"""How a form tells eager execution from capture: what it may check, and what it may decide, in each.

Eager code may raise on a size. While an exporter runs, sizes are symbols: raising on one would forbid lengths the
graph can serve, and turning one into a bool warns (TorchScript) although the decision is meant to be frozen.
"""

import warnings
from collections.abc import Callable

import torch


def is_capturing() -> bool:
    """Returns whether an exporter (torch.export or TorchScript tracing) is running the module."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def decide(condition: Callable[[], bool]) -> bool:
    """Returns a structural condition on sizes, frozen into the graph when an exporter runs the module.

    Structural means that the answer depends on how the module is called (was an empty placeholder passed?), not on
    how long this sequence is; only such conditions belong here.
    """
    if not torch.jit.is_tracing():
        return bool(condition())
    with warnings.catch_warnings():
        # Tracing warns that the branch will be a constant, which is what a structural decision asks for.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return bool(condition())
