"""Tensors on the GPU as PyTorch allocates them, one stream for everything an engine does, and numpy in and out.

PyTorch's caching allocator serves engines and the user's own tensors from one pool, and its tensors keep the memory
alive for as long as the engine holds the address.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.feeds import as_dtype

if TYPE_CHECKING:
    import numpy as np
    import torch

# torch has no numpy for these; an integer of the same size carries the bits.
_CARRIERS = {"bfloat16": "int16", "float8_e4m3fn": "int8", "float8_e5m2": "int8"}


class Buffers:
    """Allocates, fills and reads tensors on one device, all on one stream.

    Attributes:
        device: Where the tensors live.
    """

    def __init__(self, device: "torch.device") -> None:
        """Makes the stream; engines run slower on the default stream, which synchronises with all others.

        Args:
            device: A CUDA device. (On "cpu" everything is synchronous and the stream is 0, which is what tests use.)

        Raises:
            BackendMissingError: PyTorch cannot use the device.
        """
        import torch

        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise BackendMissingError(
                    f"Engines run on PyTorch's CUDA buffers, and PyTorch {torch.__version__} cannot use a GPU here. "
                    "Install the CUDA build: pip install torch, without a CPU index."
                )
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """The stream as the integer that C interfaces take (a cudaStream_t)."""
        return int(self._stream.cuda_stream) if self._stream is not None else 0

    def synchronize(self) -> None:
        """Waits until everything put on the stream is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def empty(self, shape: Sequence[int], dtype: str, *, host: bool = False) -> "torch.Tensor":
        """Returns an uninitialised tensor of that shape; where it is empty, of an allocation that is not.

        Args:
            shape: Sizes.
            dtype: numpy or ml_dtypes name.
            host: In host memory instead, as engines want the values of shape tensors.

        Raises:
            ToolkitError: There is not enough memory.
        """
        import math

        import torch

        size, kind = math.prod(shape), _torch_dtype(dtype)
        try:
            with self._on_stream():
                flat = torch.empty(max(1, size), dtype=kind, device="cpu" if host else self.device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            what = f"{dtype}{list(shape)}, {size * kind.itemsize} bytes"
            raise ToolkitError(f"There is no memory on {self.device} for {what}: {error}") from error
        return flat[:size].view(tuple(shape))

    def zeros(self, shape: Sequence[int], dtype: str) -> "torch.Tensor":
        """Returns a tensor of zeros on the device.

        Raises:
            ToolkitError: There is not enough memory.
        """
        tensor = self.empty(shape, dtype)
        with self._on_stream():
            return tensor.zero_()

    @staticmethod
    def address(tensor: "torch.Tensor") -> int:
        """Returns where the tensor lies: never 0, which PyTorch gives for an empty one and engines take for unset."""
        return tensor.data_ptr() or tensor.untyped_storage().data_ptr()

    def upload(self, array: "np.ndarray", dtype: str, *, host: bool = False) -> "torch.Tensor":
        """Returns the array as a tensor on the device; `host` leaves it in host memory."""
        import numpy as np
        import torch

        carrier = _CARRIERS.get(dtype)
        source = torch.from_numpy(np.array(array.view(carrier) if carrier else array, order="C"))
        tensor = self.empty(array.shape, dtype, host=host)
        with self._on_stream():
            tensor.copy_(source.view(_torch_dtype(dtype)) if carrier else source)
        return tensor

    def download(self, tensor: "torch.Tensor", dtype: str) -> "np.ndarray":
        """Returns the tensor's values in host memory, once everything on the stream is done."""
        import numpy as np
        import torch

        carrier = _CARRIERS.get(dtype)
        with self._on_stream():
            host = (tensor.view(getattr(torch, carrier)) if carrier else tensor).to("cpu", copy=True)
        self.synchronize()
        array: np.ndarray = host.numpy()
        return array.view(as_dtype(dtype)) if carrier else array

    def _on_stream(self) -> Any:
        import contextlib

        import torch

        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()


def output_allocator(module: Any, buffers: Buffers, failures: list[Exception]) -> Any:
    """Returns an IOutputAllocator whose memory comes from PyTorch, for outputs whose size only the run tells.

    Afterwards its `tensor(dtype)` is the output. An exception must not pass through the C++ that calls it, so it goes
    to `failures`.

    Args:
        module: tensorrt or tensorrt_rtx.
        buffers: Where the memory comes from.
        failures: Where an exception of the allocation is put.
    """
    base = module.IOutputAllocator

    class OutputAllocator(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.memory: torch.Tensor | None = None
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            try:
                if self.memory is None or self.memory.numel() < size:
                    self.memory = buffers.empty((max(1, size),), "uint8")
                return int(self.memory.data_ptr())
            except Exception as error:  # out of memory; see the docstring
                failures.append(error)
                return 0

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return self.reallocate_output_async(tensor_name, memory, size, alignment, buffers.handle)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def tensor(self, dtype: str) -> "torch.Tensor":
            import math

            kind = _torch_dtype(dtype)
            if self.memory is None:
                return buffers.empty(self.shape, dtype)
            return self.memory[: math.prod(self.shape) * kind.itemsize].view(kind).view(self.shape)

    return OutputAllocator()


def _torch_dtype(dtype: str) -> "torch.dtype":
    import torch

    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"PyTorch has no {dtype} tensors, which this engine takes or gives.")
    return found
