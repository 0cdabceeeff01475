"""Tensors as numpy arrays of a named type, bfloat16 included."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FLOATING = ("float", "bfloat", "double")


def as_array(value: Any, dtype: str | None = None) -> "npt.NDArray[np.generic]":
    """Returns a tensor or array as a contiguous numpy array; numpy has no bfloat16, so ml_dtypes' stands in.

    Args:
        value: A torch tensor or numpy array.
        dtype: Where this and the value's own type are both floating-point, the result is cast to it.
    """
    import ml_dtypes
    import numpy as np

    if isinstance(value, np.ndarray):
        array = value
    else:
        tensor = value.detach().cpu().contiguous()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
    if dtype and str(array.dtype) != dtype and dtype.startswith(_FLOATING) and is_floating(array):
        array = array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
    return np.ascontiguousarray(array).reshape(array.shape)


def is_floating(array: "npt.NDArray[np.generic]") -> bool:
    """Says whether an array holds floating-point numbers; ml_dtypes' types are not numpy's."""
    return array.dtype.name.startswith(_FLOATING)
