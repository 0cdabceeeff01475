"""numpy arrays to ONNX Runtime values and back, with bfloat16, which numpy itself does not know."""

import ctypes
from typing import TYPE_CHECKING, Any

from engines.feeds import as_dtype

if TYPE_CHECKING:
    import numpy as np

# The element type's number in onnx.proto, part of the file format.
_BEYOND_NUMPY = {"bfloat16": 16}


def is_numpy(dtype: str) -> bool:
    """Returns whether numpy, and therefore ONNX Runtime's Python, can hold the dtype without help."""
    return dtype not in _BEYOND_NUMPY


def from_host(array: "np.ndarray", dtype: str) -> Any:
    """Returns an OrtValue in host memory.

    Args:
        array: A contiguous array of that dtype. A bfloat16 one must outlive the value, which shares its memory.
        dtype: numpy or ml_dtypes name.
    """
    import onnxruntime

    if is_numpy(dtype):
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BEYOND_NUMPY[dtype])


def to_host(value: Any, dtype: str) -> "np.ndarray":
    """Returns an OrtValue as an array that outlives it.

    Args:
        value: A tensor; a bfloat16 one must be in host memory.
        dtype: numpy or ml_dtypes name.
    """
    import numpy as np

    if is_numpy(dtype):
        return np.asarray(value.numpy())  # keeps the value alive for as long as itself
    shape = tuple(value.shape())
    kind = as_dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(raw), dtype=kind).reshape(shape)
