"""Whether an engine can run here, decided from its record, the installed builder and the GPUs, before it is loaded.

An engine belongs to one GPU architecture and to one version of its builder, unless it was built to be more compatible.
The runtimes notice while loading it and call it a serialisation error; here the sentence says what it was built with,
what is here, and how to rebuild it.
"""

import logging
import shlex
from pathlib import Path
from typing import Any

from engines import vendor
from engines.engine_json import Record
from engines.errors import BackendMissingError, ToolkitError
from engines.gpus import Gpus
from engines.vendor import Vendor

_log = logging.getLogger(__name__)


def installed(record: Record, name: str) -> Vendor:
    """Returns the builder that made the engine.

    Raises:
        BackendMissingError: It is not installed, or another version of it is.
    """
    here = vendor.load(record.vendor)
    if here.version != record.version and not _later(here.version, record):
        belongs = (
            "and version-compatible engines run on that version and later ones of the same major"
            if record.flags.version_compatible
            else "and engines belong to one version"
        )
        raise BackendMissingError(
            f"{name} was built with {here.title} {record.version} for SM {record.sm}; you have {here.title} "
            f"{here.version}, {belongs}. {rebuild(record, record.sm, name)}, or install {here.title} {record.version}."
        )
    return here


def _later(version: str, record: Record) -> bool:
    """Returns whether a version-compatible engine was built with an earlier version of the same major."""
    if not record.flags.version_compatible:
        return False
    here, built = ([int(part) for part in text.split(".") if part.isdecimal()] for text in (version, record.version))
    return here[:1] == built[:1] and here > built


def require_gpu(record: Record, seen: Gpus, device: int, name: str) -> None:
    """Returns if the GPU is the one the engine was built for.

    Raises:
        BackendMissingError: There is no GPU, none of that number, or it is of another architecture.
    """
    built = f"{name} was built with {record.vendor} {record.version} for SM {record.sm}"
    if not seen.found:
        raise BackendMissingError(
            f"{built}; here {seen.reason}. Run it on a machine with such a GPU, or run the ONNX model with "
            "--provider cpu."
        )
    if not 0 <= device < len(seen.found):
        raise BackendMissingError(f"There is no GPU {device}; this machine has {len(seen.found)}, counted from 0.")
    gpu = seen.found[device]
    if not runs_on(record, gpu.sm):
        wide = " and every later one" if record.flags.hardware_compatibility == "ampere-plus" else ""
        raise BackendMissingError(f"{built}{wide}; you have {gpu.name}, SM {gpu.sm}. {rebuild(record, gpu.sm, name)}.")


def runs_on(record: Record, sm: int) -> bool:
    """Returns whether an engine runs on an architecture, e.g. sm=89."""
    return sm == record.sm or (record.flags.hardware_compatibility == "ampere-plus" and min(sm, record.sm) >= 80)


def deserialize(here: Vendor, runtime: Any, plan: bytes, name: str, heard: list[str]) -> Any:
    """Returns the engine as an ICudaEngine.

    Args:
        here: The builder.
        runtime: Its Runtime.
        plan: The engine's bytes.
        name: What messages call it.
        heard: Errors that the runtime has logged so far; it grows as the runtime speaks.

    Raises:
        BackendMissingError: The runtime refuses it; the message holds the runtime's reasons.
    """
    if hasattr(runtime, "get_engine_validity"):  # TensorRT-RTX alone reads the header without loading the engine
        validity, diagnostics = runtime.get_engine_validity(plan)
        reasons = _reasons(here.module, int(diagnostics), heard)
        if validity == here.module.EngineValidity.INVALID:
            raise BackendMissingError(
                f"{here.title} {here.version} refuses {name}: {reasons}. Update what is too old, or build again here."
            )
        if validity == here.module.EngineValidity.SUBOPTIMAL:
            _log.warning("%s runs here, but not at its best: %s.", name, reasons)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendMissingError(
            f"{here.title} {here.version} could not load {name}: {last(heard)}. Build it again here."
        )
    return engine


def failed(here: Vendor, what: str, name: str, heard: list[str]) -> ToolkitError:
    """Returns the error for a runtime that reported failure by its return value; the log has the reason."""
    return ToolkitError(f"{here.title} {what} for {name}: {last(heard)}.")


def last(heard: list[str]) -> str:
    """Returns the last error the runtime logged."""
    return heard[-1].strip().rstrip(".") if heard else "it logged no reason"


def _reasons(module: Any, diagnostics: int, heard: list[str]) -> str:
    kinds = module.EngineInvalidityDiagnostics.__members__
    named = [name.lower().replace("_", " ") for name, kind in kinds.items() if diagnostics & int(kind)]
    return ", ".join(named) or last(heard)  # where CUDA itself fails, the flags are empty and the log is not


def rebuild(record: Record, sm: int, name: str) -> str:
    """Returns the command that builds the engine again for an architecture, from its own spec if it has one.

    Args:
        record: What the engine is.
        sm: Architecture to build for.
        name: The engine's path; spec.toml lies beside it where a build of ours wrote both.
    """
    spec = Path(name).with_name("spec.toml")
    source = f"--config {shlex.quote(str(spec))}" if spec.is_file() else f"SOURCE --target {record.vendor}"
    return f"Rebuild with: python -m export build {source} --sm {sm}"
