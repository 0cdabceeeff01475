"""Arrays in .npz files, bfloat16 among them, without loss and without pickles.

numpy's format has no name for the types of ml_dtypes: it stores their bytes unchanged as "void of n bytes" (V2 for
bfloat16). Keys stay as they are; `load_npz` gives the type back from the model's inputs, and without a model reads V2
as bfloat16, the only two-byte type of ONNX that numpy lacks. By hand: `np.load(f)["y"].view(ml_dtypes.bfloat16)`.
"""

import contextlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import UsageError
from engines.feeds import as_dtype
from engines.runner import TensorSpec

if TYPE_CHECKING:
    import numpy as np


def load_npz(path: Path, specs: Sequence[TensorSpec] = ()) -> dict[str, "np.ndarray"]:
    """Returns the arrays of a .npz file by name.

    Args:
        path: The file.
        specs: The model's inputs, which tell what an array of raw bytes is.

    Raises:
        UsageError: The file is missing, is no .npz, is damaged, or holds Python objects.
    """
    import numpy as np

    wanted = {spec.name: as_dtype(spec.dtype) for spec in specs}
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(
                    f"{path} is a single array, which has no input name: save it with np.savez(file, name=array)."
                )
            return {name: _typed(archive[name], wanted.get(name)) for name in archive.files}
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} is not a .npz file of plain arrays ({error}). Write one with np.savez(file, name=array, ...); "
            "arrays of Python objects are not read."
        ) from error


def save_npz(path: Path, arrays: Mapping[str, "np.ndarray"]) -> None:
    """Writes the arrays as a .npz file, whole or not at all: a temporary file beside it is renamed onto `path`.

    Raises:
        UsageError: The folder is missing or not writable, or the disk is full.
    """
    import numpy as np

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # numpy's savez takes the names as keyword arguments, so that an output called "file" would break it.
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _raw(np.asarray(array)), allow_pickle=False)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"Could not write {path}: {error.strerror or error}. Nothing was left there.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _raw(array: "np.ndarray") -> "np.ndarray":
    """Returns the array as numpy can describe it in a file; left alone, it writes float8 so that nothing reads it."""
    is_foreign = array.dtype.type.__module__.startswith("ml_dtypes")
    return array.view(f"V{array.dtype.itemsize}") if is_foreign else array


def _typed(array: "np.ndarray", wanted: "np.dtype | None") -> "np.ndarray":
    if array.dtype.kind != "V" or array.dtype.names:
        return array
    if wanted is not None and wanted.itemsize == array.dtype.itemsize:
        return array.view(wanted)
    return array.view(as_dtype("bfloat16")) if array.dtype.itemsize == 2 else array
