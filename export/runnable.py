"""Which file a provider runs, of an artifact folder or as named, opened in the runner it needs."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines import engine_json, vendor
from engines.gpus import gpus
from engines.runner import Runner
from export.errors import BackendMissingError, UsageError


@dataclass(frozen=True)
class Runnable:
    """A model that is ready to run.

    Attributes:
        runner: Runs it.
        file: The file that was chosen.
        why: Why this file and, where the file was changed in memory, how; one sentence.
        usual: Typical sizes of its symbolic dimensions, as far as the folder tells.
    """

    runner: Runner
    file: Path
    why: str
    usual: Mapping[str, int] = field(default_factory=dict)


def open_runnable(
    model: Path,
    provider: str | None = None,
    *,
    threads: int | None = None,
    verbose: bool = False,
    runtime_cache: Path | None = None,
) -> Runnable:
    """Returns the runner for a model on a provider.

    An engine runs on its own builder's runtime. An artifact folder gives the engine of this GPU's architecture to
    "tensorrt" and "tensorrt-rtx"; to "cpu" and "cuda" it gives lowered.ort.onnx or, in a folder built for another
    target, fused.onnx lowered for ONNX Runtime in memory, since ONNX Runtime reads some standard masks wrongly.

    Args:
        model: An artifact folder, an .onnx file or an engine file.
        provider: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"; None means the engine's own, else "cpu".
        threads: Threads inside one operator of ONNX Runtime.
        verbose: Let ONNX Runtime write its log to stderr.
        runtime_cache: For an engine of TensorRT-RTX, the file that keeps its compiled kernels.

    Raises:
        UsageError: There is no such model, the folder has nothing for the provider, or the file cannot be used.
        BackendMissingError: The provider is not usable here.
    """
    if model.is_dir():
        if (provider or "cpu") in vendor.NAMES:
            return _engine(*_own_engine(model, str(provider)), threads=threads, runtime_cache=runtime_cache)
        _no_engine(runtime_cache)
        return _from_folder(model, provider or "cpu", threads, verbose)
    if not model.exists():
        raise UsageError(f"There is no {model}: give an artifact folder, an .onnx file or an engine.")
    if model.suffix == ".engine":
        record = engine_json.read(model)
        if provider not in (None, record.vendor):
            raise UsageError(f"{model} is a {record.vendor} engine; run it with --provider {record.vendor}.")
        return _engine(model, "it was named", threads=threads, runtime_cache=runtime_cache)
    _no_engine(runtime_cache)
    from engines.ort_runner import OrtRunner

    runner = OrtRunner(model, provider or "cpu", threads=threads, verbose=verbose)
    return Runnable(runner, model, "it was named", engine_json.usual_sizes(model.parent))


def _from_folder(folder: Path, provider: str, threads: int | None, verbose: bool) -> Runnable:
    from engines.ort_runner import OrtRunner

    usual = engine_json.usual_sizes(folder)
    lowered, fused = folder / "lowered.ort.onnx", folder / "fused.onnx"
    if lowered.is_file():
        runner = OrtRunner(lowered, provider, threads=threads, verbose=verbose)
        return Runnable(runner, lowered, "it is the graph lowered for ONNX Runtime", usual)
    if not fused.is_file():
        raise UsageError(
            f"{folder} holds neither lowered.ort.onnx nor fused.onnx: it is no artifact folder. Give the folder that "
            "python -m export build wrote, or name an .onnx file."
        )
    from export import model_file
    from export.lower import lower

    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "lowered.ort.onnx"
        model_file.save(lower(model_file.load(fused), "ort").model, copy)
        runner = OrtRunner(copy, provider, threads=threads, verbose=verbose)
    why = "the folder was built for another target; it was lowered for ONNX Runtime in memory"
    return Runnable(runner, fused, why, usual)


def _no_engine(runtime_cache: Path | None) -> None:
    if runtime_cache is not None:
        raise UsageError("--runtime-cache is for engines of TensorRT-RTX; ONNX Runtime runs this. Leave it out.")


def _own_engine(folder: Path, provider: str) -> tuple[Path, str]:
    """Returns the engine of the folder that runs on this machine's first GPU, and why it was chosen."""
    records = [record for record in engine_json.read_folder(folder) if record.vendor == provider]
    if not records:
        vendor.load(provider)  # not installed is the graver news: no folder would run here
        if not gpus().found:
            raise BackendMissingError(f"{provider} engines run on an NVIDIA GPU; here {gpus().reason}.")
        raise UsageError(
            f"{folder} holds no {provider} engine. Build one: python -m export build SOURCE --target {provider}; "
            "or run its ONNX graph with --provider cpu."
        )
    here = gpus().found
    if not here:  # whichever it is, the runner says what is missing
        return folder / records[0].file, "it is the folder's first engine"
    for record in records:
        if record.sm == here[0].sm:
            return folder / record.file, f"it is the one for SM {record.sm}, {here[0].name}"
    built = ", ".join(str(record.sm) for record in records)
    raise BackendMissingError(
        f"{folder} holds {provider} engines for SM {built}; you have {here[0].name}, SM {here[0].sm}. Rebuild with: "
        f"python -m export build SOURCE --target {provider} --sm {here[0].sm}."
    )


def _engine(path: Path, why: str, *, threads: int | None, runtime_cache: Path | None) -> Runnable:
    if threads is not None:
        raise UsageError("--threads is for ONNX Runtime; an engine runs on the GPU. Leave it out.")
    from engines.engine_runner import EngineRunner

    runner = EngineRunner(path, runtime_cache=runtime_cache)
    usual = {name: opt for name, (_, opt, _) in runner.record.dims.items()}
    return Runnable(runner, path, why, usual)
