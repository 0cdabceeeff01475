"""Buffers: what goes up comes down bit for bit, and no tensor lies at address 0."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engines.cuda_buffers import Buffers
from engines.errors import UsageError


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8", "int8"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_round_trip(dtype: str, shape: tuple[int, ...]) -> None:
    import torch

    buffers = Buffers(torch.device("cpu"))
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(_numpy(dtype))
    tensor = buffers.upload(array, dtype)
    assert buffers.address(tensor) != 0
    back = buffers.download(tensor, dtype)
    assert (back.dtype, back.shape) == (array.dtype, shape)
    assert back.tobytes() == array.tobytes()


def test_a_dtype_pytorch_lacks() -> None:
    import torch

    with pytest.raises(UsageError, match="no float4_e2m1fn tensors"):
        Buffers(torch.device("cpu")).empty((2,), "float4_e2m1fn")


def _numpy(name: str) -> Any:
    return getattr(ml_dtypes, name, name)
