"""The NVIDIA GPUs this process can use, asked of the driver itself: no CUDA package, no PyTorch, no subprocess.

CUDA_VISIBLE_DEVICES is honoured, as by everything that will compute later (nvidia-smi ignores it).
"""

import ctypes
import functools
import sys
from dataclasses import dataclass

# CUdevice_attribute numbers of cuda.h, which are part of the driver's ABI.
_MAJOR, _MINOR = 75, 76
_NO_DEVICE = 100


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: What the driver calls it, e.g. "NVIDIA L4".
        sm: Compute capability, e.g. 89 for 8.9.
        memory: Bytes in all.
    """

    name: str
    sm: int
    memory: int


@dataclass(frozen=True)
class Gpus:
    """What the driver answered.

    Attributes:
        found: The GPUs in CUDA's order, which is also PyTorch's.
        cuda: Highest CUDA version the driver runs, e.g. "13.0"; None without a driver.
        reason: Why there is none; None where there is one.
    """

    found: tuple[Gpu, ...]
    cuda: str | None
    reason: str | None


@functools.cache
def gpus() -> Gpus:
    """Returns the GPUs of this machine. That there is none is an answer, not an error."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Gpus((), None, f"no NVIDIA driver is installed ({library} is not found)")
    return ask(driver)


def ask(driver: ctypes.CDLL) -> Gpus:
    """Returns what a loaded driver library answers."""
    status = driver.cuInit(0)
    version = ctypes.c_int()
    known = driver.cuDriverGetVersion(ctypes.byref(version)) == 0
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}" if known else None
    if status == _NO_DEVICE:
        return Gpus((), cuda, "the NVIDIA driver finds no GPU (or CUDA_VISIBLE_DEVICES hides it)")
    if status != 0:
        return Gpus((), cuda, f"the NVIDIA driver does not start (cuInit returned {status})")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Gpus((), cuda, "the NVIDIA driver finds no GPU (or CUDA_VISIBLE_DEVICES hides it)")
    found = tuple(gpu for ordinal in range(count.value) if (gpu := _gpu(driver, ordinal)))
    return Gpus(found, cuda, None if found else "the NVIDIA driver does not describe its GPU")


def _gpu(driver: ctypes.CDLL, ordinal: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    asked = (
        driver.cuDeviceGet(ctypes.byref(device), ordinal),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
    )
    if any(asked):
        return None
    return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value, memory.value)
