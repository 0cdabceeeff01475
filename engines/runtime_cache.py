"""The runtime cache: TensorRT-RTX compiles an engine's kernels when they are first run, and a file can keep them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.errors import ToolkitError, UsageError
from engines.vendor import Vendor


def refuse(path: Path, here: Vendor) -> None:
    """Refuses a runtime cache that cannot be.

    Raises:
        UsageError: The vendor has none, or the file's folder does not exist.
    """
    if here.cache != "runtime":
        raise UsageError(
            f"{here.title} compiles its kernels while it builds and has no runtime cache. Leave --runtime-cache out; "
            "build --timing-cache makes its builds faster."
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "cannot be written: its folder does not exist"
        raise UsageError(f"The runtime cache {path} {what}; name a file in an existing folder.")


def context(here: Vendor, engine: Any, path: Path, warn: Callable[[str], None]) -> tuple[Any, Any]:
    """Returns an IExecutionContext (or None, for want of memory) that uses the kernels of a file, and its cache.

    Args:
        here: The builder.
        engine: The ICudaEngine.
        path: The file; it need not exist.
        warn: Called with a sentence where the runtime does not take the file's kernels, and compiles them again.

    Raises:
        ToolkitError: The runtime takes no cache at all.
    """
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    if path.is_file() and not cache.deserialize(path.read_bytes()):
        warn(
            f"The runtime cache {path} is damaged, or of another GPU, driver or version of {here.title}; its "
            "kernels are compiled again, and the file is replaced."
        )
    if not config.set_runtime_cache(cache):
        raise ToolkitError(f"{here.title} {here.version} refused a runtime cache; leave --runtime-cache out.")
    return engine.create_execution_context(config), cache


def keep(cache: Any, path: Path) -> None:
    """Writes the compiled kernels, whole or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(memoryview(cache.serialize()))
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"The runtime cache {path} cannot be written: {error.strerror}; name another file.") from error
    finally:
        temporary.unlink(missing_ok=True)
