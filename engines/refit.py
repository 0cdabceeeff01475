"""Putting the weights into an engine that was written without them, from the ONNX file beside it."""

import json
from pathlib import Path
from typing import Any

from engines import engine_fit, engine_json
from engines.errors import UsageError
from engines.vendor import Vendor


def put_weights(here: Vendor, engine: Any, logger: Any, path: Path, heard: list[str]) -> None:
    """Refits a stripped ICudaEngine with the weights it was built from.

    Args:
        here: Its builder.
        engine: The ICudaEngine, without weights.
        logger: The runtime's ILogger.
        path: The engine's file; the folder holds the ONNX file it was built from, and engine.json signs that.
        heard: Errors that the logger has heard so far.

    Raises:
        UsageError: The ONNX file is missing, or is not the one of the build: other weights would be silently wrong.
        ToolkitError: The vendor could not put the weights in.
    """
    weights = weights_of(path)
    refitter = here.module.Refitter(engine, logger)
    parser = here.module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise engine_fit.failed(
            here, f"could not put the weights of {weights.name} into the stripped engine", str(path), heard
        )


def weights_of(engine: Path) -> Path:
    """Returns the ONNX file that a stripped engine was built from.

    Raises:
        UsageError: It is missing, or not the one of the build.
    """
    content = json.loads((engine.parent / engine_json.NAME).read_text())
    name = f"lowered.{content.get('target')}.onnx"
    signed = {file: sha for file, sha in content.get("files", {}).items() if file.startswith(name)}
    cure = f"it was built with --strip-plan and runs only with the weights of its build's {name}"
    if name not in signed:
        raise UsageError(
            f"{engine} holds no weights: {cure}, and {engine_json.NAME} does not know that file. Build again."
        )
    for file, sha in signed.items():
        path = engine.parent / file
        if not path.is_file() or engine_json.digest(path) != sha:
            what = "is not the file of the build (its sha256 differs)" if path.is_file() else "is missing"
            raise UsageError(f"{engine} holds no weights: {cure}, and {path} {what}. Put it back, or build again.")
    return engine.parent / name
