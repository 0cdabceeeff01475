"""The files of an artifact folder besides the models: engine.json, layers.json, report.json, spec.toml."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import achieved, engine_json
from export import digest
from export.precision import achieved as precision
from export.report import files, html
from export.report.record import Engine, Kernel, Report
from export.report.stdout import finite
from export.subject import Exported

if TYPE_CHECKING:
    from engines.build import BuiltEngine
    from engines.cached import Obtained
    from export.decode.stage import Decoded
    from export.fuse.rows import Attention
    from export.lower import Lowered

LAYERS, REPORT, SPEC = "layers.json", "report.json", "spec.toml"
SEAL = engine_json.SEAL
"""The key of engine.json that signs the rest of it; "files" in it signs every other file."""


def engine(obtained: "Obtained", lowered: "Lowered", dtype: str) -> Engine:
    """Returns the report's row for an engine that was built.

    Args:
        obtained: The engine, and whether it was built or comes from the cache.
        lowered: The graph it was built from, and what lowering did to it.
            Where it wrote an attention out, its reason is why no fused kernel computes it, and what the builder's log
            lets one guess is not.
        dtype: The precision asked for.
    """
    built = obtained.engine
    written = {step.attention: step.why for step in lowered.steps if step.action == "decompose"}
    seen = {name: achieved.of_kernels(built.layers, choice.kernels) for name, choice in built.attentions.items()}
    causes = precision.causes(lowered.model, dtype, [name for name, own in seen.items() if own not in (None, dtype)])
    kernels = {}
    for name, choice in built.attentions.items():
        cause = written.get(name) if choice.fused is False else None
        why = f"{choice.why.partition(': ')[0]}: {cause}" if cause else choice.why
        kernels[name] = Kernel(choice.fused, choice.kernels, why, seen[name], causes.get(name, ""))
    of_attentions = {layer for choice in built.attentions.values() for layer in choice.kernels}
    whole = achieved.of_engine(built.layers, of_attentions, precision.angle_nodes(lowered.model))
    row = (built.sm, built.path.name, built.seconds, built.size, built.scratch)
    return Engine(*row, kernels, obtained.hit, whole, built.memory)


def write_engines(
    folder: Path,
    built: "Iterable[BuiltEngine]",
    target: str,
    attentions: "Iterable[Attention]" = (),
    decoded: "Decoded | None" = None,
) -> None:
    """Writes engine.json (what running the engines takes) and layers.json, before anything is judged.

    In layers.json each attention of an engine has the kernels that compute it and the PyTorch module it is (`block`).
    """
    blocks = {row.name: row.block for row in attentions}
    engines = list(built)
    lowered = sorted(p for p in folder.glob(f"*.{target}.onnx*") if engines)
    content = {
        "schema": engine_json.SCHEMA,
        "target": target,
        "engines": [engine_json.entry(e) for e in engines],
        "files": {path.name: digest.of_file(path) for path in lowered},
        **_decode(decoded),
    }
    files.write_json(folder / engine_json.NAME, content)
    layers = [
        {
            "file": e.path.name,
            "sm": e.sm,
            "scratch": e.scratch,
            "attentions": {
                name: {**asdict(choice), "block": blocks.get(name)} for name, choice in e.attentions.items()
            },
            "layers": [asdict(layer) for layer in e.layers],
        }
        for e in (*engines, *(o.engine for _, o in (decoded.built if decoded else ())))
    ]
    files.write_json(folder / LAYERS, {"schema": 1, "engines": layers})


def _decode(decoded: "Decoded | None") -> dict[str, Any]:
    """Returns what a decode loop needs, under the key that engine.json has for it."""
    if decoded is None:
        return {}
    engines = [{"graph": name, **engine_json.entry(o.engine)} for name, o in decoded.built]
    return {engine_json.DECODE: {**decoded.decoding.as_dict(), "graphs": dict(decoded.files), "engines": engines}}


def write(
    folder: Path,
    report: Report,
    parts: digest.Parts,
    built: "Iterable[BuiltEngine]",
    exported: Exported,
    decoded: "Decoded | None" = None,
) -> None:
    """Writes report.json, spec.toml, the full engine.json, which signs all of it and the models, and report.html."""
    from export.spec import Spec

    spec = Spec().with_values(report.spec, "the resolved spec")
    (folder / SPEC).write_text(spec.as_toml(), encoding="utf-8")
    files.write_json(folder / REPORT, report.as_json())
    unsigned = (engine_json.NAME, html.NAME)  # the page is a view, which may be made again
    signed = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in unsigned)
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
        **_decode(decoded),
        "parts": parts,
    }
    files.write_json(folder / engine_json.NAME, {**content, SEAL: seal(content)})
    html.write(folder, name=str(report.folder))


def seal(content: Mapping[str, Any]) -> str:
    """Returns the sha256 of engine.json's content but for the seal, however it is indented or ordered."""
    return engine_json.seal(finite(dict(content)))
