"""How a form decides on a size, or takes one for a constant, while an exporter runs it."""

import warnings

from torch import Tensor


def decide(condition: bool | Tensor) -> bool:
    """Returns a structural condition on sizes, frozen into the graph when an exporter runs the module.

    Structural means that the answer depends on how the module is called (was an empty placeholder passed?), not on
    how long this sequence is; only such conditions belong here.

    Args:
        condition: A comparison of sizes: a bool, a symbolic one under torch.export, or the tensor that sizes are
            under the TorchScript tracer.
    """
    with warnings.catch_warnings():
        # The tracer warns that the branch becomes a constant, which is what a structural decision asks for.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python boolean")
        return bool(condition)


def constant(size: int) -> int:
    """Returns a size that no call changes, such as a head size, as a number whatever runs the module.

    The TorchScript tracer hands out every size as a tensor, and warns when one becomes a number.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python")
        return int(size)
