"""Between PyTorch's nested tensors and named numpy arrays; names are those that capture gives the graph."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from export.capture import tree
from export.capture.arrays import as_array

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    AnyArray = npt.NDArray[np.generic]


def to_torch(x: Any) -> Any:
    """Returns an array as a tensor of the same type, ml_dtypes.bfloat16 included; anything else unchanged."""
    import ml_dtypes
    import numpy as np
    import torch

    if not isinstance(x, np.ndarray):
        return x
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(x))


def change_floats(inputs: Mapping[str, Any], change: "Callable[[torch.Tensor], torch.Tensor]") -> dict[str, Any]:
    """Returns the inputs as tensors, floating-point ones changed; None and plain numbers stay."""

    def one(_: str, leaf: Any) -> Any:
        leaf = to_torch(leaf)
        return change(leaf) if _is_tensor(leaf) and leaf.is_floating_point() else leaf

    return tree.rebuild(inputs, one)


def cast(inputs: Mapping[str, Any], dtype: "torch.dtype") -> dict[str, Any]:
    """Returns the inputs as tensors with every floating-point one in `dtype`."""
    return change_floats(inputs, lambda x: x.to(dtype))


def outputs(value: Any) -> "dict[str, AnyArray]":
    """Returns the tensors a call returned as arrays by name, in the exporter's order; None and numbers left out."""
    return {name: as_array(x) for name, x in tree.outputs(value) if _is_tensor(x)}


def feeds(inputs: Mapping[str, Any]) -> "dict[str, AnyArray]":
    """Returns the tensors among the inputs as arrays by graph input name."""
    return {name: as_array(x) for name, x in tree.leaves(inputs) if hasattr(x, "shape")}


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "is_floating_point")
