"""An artifact folder as a model of a Triton Inference Server repository: REPOSITORY/NAME/config.pbtxt and version 1.

    NAME/config.pbtxt
    NAME/1/model.plan            target tensorrt: the engine; model.sm<sm>.plan where there are several
    NAME/1/model.onnx            target ort: the lowered graph; a folder of that name where its weights lie beside it

Other models of the repository are left alone. The model's folder appears whole or not at all (`engines.artifact`).
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines import artifact, engine_json, graph
from export import reuse
from export.errors import UsageError
from export.triton_config import KINDS, ModelConfig, max_batch_size

FORMATS = ("triton-repository",)
VERSION = "1"


@dataclass(frozen=True)
class Written:
    """A model that was written.

    Attributes:
        model: Its folder.
        config: What config.pbtxt says.
    """

    model: Path
    config: ModelConfig

    def as_json(self) -> dict[str, Any]:
        """Returns what there is to tell, as JSON."""
        return {
            "schema": 1,
            "format": FORMATS[0],
            "model": str(self.model),
            "name": self.config.name,
            "platform": self.config.platform,
            "max_batch_size": self.config.max_batch_size,
            "files": sorted(str(p.relative_to(self.model)) for p in self.model.rglob("*") if p.is_file()),
        }


def write(
    folder: Path, repository: Path, *, name: str | None = None, kind: str | None = None, instances: int = 1
) -> Written:
    """Writes a finished artifact folder into a model repository.

    Args:
        folder: What `build` wrote, for target ort or tensorrt.
        repository: The repository's folder; made where it is missing.
        name: The model's name; None: the folder's.
        kind: "auto", "gpu" or "cpu"; None: gpu for engines, auto for ONNX files.
        instances: How many instances the server makes of it, on each GPU.

    Raises:
        UsageError: The folder is none of ours, damaged, FAILED, or built for a target that the server does not run.
    """
    name = name or re.sub(r"[^\w.-]+", "_", folder.resolve().name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"{name!r} is no name for a model; use letters, digits, '_', '-' and '.'.")
    if kind not in (None, *KINDS) or instances < 1:
        raise UsageError(f"An instance group is of kind {', '.join(KINDS)}, and of one instance or more.")
    content = _content(folder)
    target = str(content["target"])
    config, files = _engines(folder, content, name) if target == "tensorrt" else _onnx(folder, content, name, target)
    config = _placed(config, kind, instances)
    text = config.as_text()
    with artifact.staged(repository / name) as stage:
        for place, source in files.items():
            (stage / VERSION / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, stage / VERSION / place)
        (stage / "config.pbtxt").write_text(text, encoding="utf-8")
    return Written(repository / name, config)


def _content(folder: Path) -> dict[str, Any]:
    """Returns engine.json of a folder that is whole and PASSED."""
    engine_json.read_folder(folder)  # refuses what is not ours, with its own words
    content: dict[str, Any] = json.loads((folder / engine_json.NAME).read_text(encoding="utf-8"))
    try:
        damaged = reuse.changed_files(folder, content["files"]) | reuse.changed_record(content)
        passed, _ = content["passed"], content["target"]
    except KeyError as error:
        raise UsageError(f"{folder} is not a complete artifact (it has no {error}). Build it again.") from error
    for file, what in damaged.items():
        raise UsageError(f"{folder} was changed: {file} {what}. Build it again.")
    if not passed:
        raise UsageError(f"The build in {folder} FAILED its checks, so it is not served: see its report.json.")
    return content


def _dims(content: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {name: (low, opt, high) for name, (low, opt, high) in content["profile"].items()}


def _engines(folder: Path, content: dict[str, Any], name: str) -> tuple[ModelConfig, dict[str, Path]]:
    records = engine_json.records(content)
    first = records[0]
    if first.flags.strip_plan:
        raise UsageError(
            f"The engine of {folder} was built with --strip-plan and holds no weights, and Triton Inference Server "
            "puts none in. Build without --strip-plan."
        )
    remarks = [f"{r.file}: sha256 {r.sha256}, {r.vendor} {r.version}, SM {r.sm}" for r in records]
    if first.flags.version_compatible:
        remarks.append("To run it on a later TensorRT: tritonserver --backend-config=tensorrt,version-compatible=true")
    one = len(records) == 1
    names = {r.sm: "model.plan" if one else f"model.sm{r.sm}.plan" for r in records}
    config = ModelConfig(
        name,
        "tensorrt_plan",
        max_batch_size((*first.inputs, *first.outputs), first.dims),
        first.inputs,
        first.outputs,
        names[first.sm],
        {} if one else {f"{sm // 10}.{sm % 10}": file for sm, file in names.items()},
        kind="gpu",
        remarks=tuple(remarks),
    )
    return config, {names[r.sm]: folder / r.file for r in records}


def _onnx(folder: Path, content: dict[str, Any], name: str, target: str) -> tuple[ModelConfig, dict[str, Path]]:
    if target != "ort":
        why = {
            "tensorrt-rtx": "its tensorrt backend loads engines of full TensorRT, and not those of TensorRT-RTX",
            "onnx": "what the standard allows is more than its onnxruntime backend computes",
        }[target]
        raise UsageError(
            f"{folder} was built for {target}, and Triton Inference Server does not serve that: {why}. Build with "
            "--target ort, or --target tensorrt on a machine with the server's GPU."
        )
    path = folder / f"lowered.{target}.onnx"
    facts = graph.read(path)
    beside = [p for p in sorted(folder.iterdir()) if p.name.startswith(f"{path.name}.")]
    config = ModelConfig(
        name,
        "onnxruntime_onnx",
        max_batch_size((*facts.inputs, *facts.outputs), _dims(content)),
        facts.inputs,
        facts.outputs,
        "model.onnx",
        remarks=(f"{path.name}: sha256 {content['files'][path.name]}, opset {content['opset']}",),
    )
    if not beside:
        return config, {"model.onnx": path}
    # Of a folder named model.onnx the server's backend loads the file of that name inside, its data beside it.
    return config, {"model.onnx/model.onnx": path, **{f"model.onnx/{p.name}": p for p in beside}}


def _placed(config: ModelConfig, kind: str | None, instances: int) -> ModelConfig:
    if kind == "cpu" and config.platform == "tensorrt_plan":
        raise UsageError("An engine runs on a GPU; leave --kind cpu out, or build with --target ort.")
    return replace(config, kind=kind or config.kind, instances=instances)
