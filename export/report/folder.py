"""The files of an artifact folder besides the models: engine.json, layers.json, report.json, spec.toml."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import engine_json
from export import digest
from export.report import files
from export.report.record import Engine, Kernel, Report
from export.report.stdout import finite
from export.subject import Exported

if TYPE_CHECKING:
    from engines.build import BuiltEngine
    from engines.cached import Obtained
    from export.lower import Step

LAYERS, REPORT, SPEC = "layers.json", "report.json", "spec.toml"
SEAL = engine_json.SEAL
"""The key of engine.json that signs the rest of it; "files" in it signs every other file."""


def engine(obtained: "Obtained", steps: "Iterable[Step]" = ()) -> Engine:
    """Returns the report's row for an engine that was built.

    Args:
        obtained: The engine, and whether it was built or comes from the cache.
        steps: What lowering did. Where it wrote an attention out, its reason is why no fused kernel computes it, and
            what the builder's log lets one guess is not.
    """
    built = obtained.engine
    written = {step.attention: step.why for step in steps if step.action == "decompose"}
    kernels = {}
    for name, choice in built.attentions.items():
        cause = written.get(name) if choice.fused is False else None
        kernels[name] = Kernel(
            choice.fused, choice.kernels, f"{choice.why.partition(': ')[0]}: {cause}" if cause else choice.why
        )
    return Engine(built.sm, built.path.name, built.seconds, built.size, built.scratch, kernels, obtained.hit)


def write_engines(folder: Path, built: "Iterable[BuiltEngine]", target: str) -> None:
    """Writes engine.json (what running the engines takes) and layers.json, before anything is judged."""
    engines = list(built)
    lowered = sorted(folder.glob(f"lowered.{target}.onnx*")) if engines else []
    content = {
        "schema": engine_json.SCHEMA,
        "target": target,
        "engines": [engine_json.entry(e) for e in engines],
        "files": {path.name: digest.of_file(path) for path in lowered},
    }
    files.write_json(folder / engine_json.NAME, content)
    layers = [
        {
            "file": e.path.name,
            "sm": e.sm,
            "scratch": e.scratch,
            "attentions": {name: asdict(choice) for name, choice in e.attentions.items()},
            "layers": [asdict(layer) for layer in e.layers],
        }
        for e in engines
    ]
    files.write_json(folder / LAYERS, {"schema": 1, "engines": layers})


def write(
    folder: Path, report: Report, parts: digest.Parts, built: "Iterable[BuiltEngine]", exported: Exported
) -> None:
    """Writes report.json, spec.toml and the full engine.json, whose digests cover every file."""
    from export.spec import Spec

    spec = Spec().with_values(report.spec, "the resolved spec")
    (folder / SPEC).write_text(spec.as_toml(), encoding="utf-8")
    files.write_json(folder / REPORT, report.as_json())
    signed = sorted(path for path in folder.iterdir() if path.is_file() and path.name != engine_json.NAME)
    content: dict[str, Any] = {
        "schema": engine_json.SCHEMA,
        "digest": report.digest,
        "passed": report.passed,
        "target": report.spec["target"],
        "dtype": report.spec["dtype"],
        "opset": report.opset,
        "inputs": [asdict(tensor) for tensor in exported.inputs],
        "outputs": list(exported.outputs),
        "profile": {dim: list(sizes) for dim, sizes in report.profile.items()},
        "engines": [engine_json.entry(e) for e in built],
        "files": {path.name: digest.of_file(path) for path in signed},
        "parts": parts,
    }
    files.write_json(folder / engine_json.NAME, {**content, SEAL: seal(content)})


def seal(content: Mapping[str, Any]) -> str:
    """Returns the sha256 of engine.json's content but for the seal, however it is indented or ordered."""
    return engine_json.seal(finite(dict(content)))
