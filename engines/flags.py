"""What a build may ask of the builder beyond the graph, which vendor has it, and how it reaches the builder's config.

Precision is not among them: a network is strongly typed, and each tensor has the dtype of the ONNX file. The flags that
used to choose it (FP16, BF16, INT8, ...) are gone in TensorRT 11 and used nowhere; TF32, which both vendors still set
by themselves and which rounds float32 products to 11 bits, is cleared.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engines.errors import BackendMissingError, EngineBuildError, UsageError
from engines.gpus import gpus
from engines.vendor import Vendor

HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
"""What users write, and the member of both vendors' `HardwareCompatibilityLevel`."""

_BUILDER_FLAGS = {"version_compatible": "VERSION_COMPATIBLE", "refit": "REFIT", "strip_plan": "STRIP_PLAN"}

_REFUSED = {
    "hardware_compatibility": (
        "has no hardware compatibility levels: its engines are compiled for each architecture. Name them all instead, "
        "as in --sm 86,89,120"
    ),
    "version_compatible": "ties every engine to its own version. Leave --version-compatible out, and rebuild to update",
    "timing_cache": (
        "times nothing while it builds, so it has no timing cache; it keeps compiled kernels in a runtime cache when "
        "it runs. Leave --timing-cache out"
    ),
}
"""Why TensorRT-RTX does not take an option, after its name and version."""


@dataclass(frozen=True)
class Flags:
    """What a build asks for.

    Attributes:
        hardware_compatibility: None, "ampere-plus" (runs on SM 80 and up) or "same-compute-capability" (runs on every
            GPU of the same SM, however many multiprocessors it has).
        version_compatible: The engine runs on later TensorRT versions of the same major, too. It then carries code that
            runs on the host, which the runner allows only after its sha256 was compared.
        refit: The weights can be exchanged in the finished engine.
        strip_plan: The engine is written without its weights; the runner puts them in from the ONNX file.
        timing_cache: File in which the builder keeps what it measured, for the next build; made where it is missing.
            It changes how long a build takes and, within noise, which kernels win; never what they compute.
    """

    hardware_compatibility: str | None = None
    version_compatible: bool = False
    refit: bool = False
    strip_plan: bool = False
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        if self.hardware_compatibility is not None and self.hardware_compatibility not in HARDWARE:
            raise UsageError(
                f"There is no hardware compatibility {self.hardware_compatibility!r}; choose {' or '.join(HARDWARE)}."
            )

    def as_dict(self) -> dict[str, Any]:
        """Returns what was asked for, as JSON has it; {} where nothing was."""
        return {name: value for name, value in asdict(self).items() if value}

    def of_engine(self) -> dict[str, Any]:
        """Returns what makes the engine another one: all but the place of the timing cache."""
        return {name: value for name, value in self.as_dict().items() if name != "timing_cache"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Flags":
        """Returns the flags that `as_dict` wrote; names it does not know are a TypeError."""
        return cls(**dict(values))


NAMES = tuple(field.name for field in fields(Flags))


def refuse(flags: Flags, vendor: Vendor) -> None:
    """Refuses what the vendor does not have, before anything is built.

    Raises:
        UsageError: The vendor has no such option, or the timing cache has no folder.
        BackendMissingError: The option takes a GPU, and there is none.
    """
    for name in flags.as_dict():
        if not vendor.sms or name not in _REFUSED:
            continue
        raise UsageError(f"{vendor.title} {vendor.version} {_REFUSED[name]}.")
    if vendor.sms and (flags.refit or flags.strip_plan) and not gpus().found:
        asked = "--strip-plan" if flags.strip_plan else "--refit"
        raise BackendMissingError(
            f"{vendor.title} {vendor.version} loads the kernels of a refittable engine onto a GPU while it builds: "
            f"{gpus().reason}. Leave {asked} out, or build on a machine with an NVIDIA GPU."
        )
    place = flags.timing_cache and Path(flags.timing_cache).absolute()
    if place and (place.is_dir() or not place.parent.is_dir()):
        what = "is a folder" if place.is_dir() else "cannot be written: its folder does not exist"
        raise UsageError(f"The timing cache {flags.timing_cache} {what}; name a file in an existing folder.")


def apply(module: Any, config: Any, flags: Flags) -> None:
    """Sets an IBuilderConfig as asked, all but the timing cache."""
    config.clear_flag(module.BuilderFlag.TF32)
    for name, member in _BUILDER_FLAGS.items():
        if getattr(flags, name):
            config.set_flag(getattr(module.BuilderFlag, member))
    if flags.hardware_compatibility:
        level = getattr(module.HardwareCompatibilityLevel, HARDWARE[flags.hardware_compatibility])
        config.hardware_compatibility_level = level


def use_timing_cache(config: Any, path: str, warn: Callable[[str], None]) -> bytes:
    """Gives an IBuilderConfig the timing cache of a file, or an empty one; returns the bytes that were read.

    Args:
        config: The builder's config.
        path: The file; it need not exist.
        warn: Called with a sentence where the file cannot be used and a new cache is begun.

    Raises:
        EngineBuildError: The builder takes no timing cache at all.
    """
    try:
        known = Path(path).read_bytes()
    except FileNotFoundError:
        known = b""
    cache = _timing_cache(config, known)
    if cache is not None and config.set_timing_cache(cache, False):
        return known
    if known:
        warn(f"The timing cache {path} is damaged, or of another GPU or version of TensorRT; a new one is begun.")
        fresh = _timing_cache(config, b"")
        if fresh is not None and config.set_timing_cache(fresh, False):
            return known  # so that nobody takes what lies there for another build's
    raise EngineBuildError("TensorRT made no timing cache; leave --timing-cache out.")


def keep_timing_cache(config: Any, path: str, read: bytes) -> None:
    """Writes what the builder measured to the file, whole, with what other builds put there since `read` was read.

    Raises:
        UsageError: The file cannot be written.
    """
    from engines.lock import Lock

    cache = config.get_timing_cache()
    if cache is None:
        return
    place = Path(path).absolute()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        lock = Lock.wait(place.with_name(f".{place.name}.lock"))
        try:
            there = place.read_bytes() if place.is_file() else b""
            others = _timing_cache(config, there) if there != read else None
            if others is not None:
                cache.combine(others, False)
            temporary.write_bytes(memoryview(cache.serialize()))
            os.replace(temporary, place)
        finally:
            lock.remove()
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"The timing cache {path} cannot be written: {error.strerror}; name another file.") from error


def _timing_cache(config: Any, content: bytes) -> Any:
    """Returns an ITimingCache, or None where the bytes are none; the bindings say so in either of two ways."""
    try:
        return config.create_timing_cache(content)
    except Exception:  # pybind11 reports a null pointer as it likes; the caller begins a new cache
        return None
