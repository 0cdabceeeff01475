"""Exports an entry as a user would, with `torch.onnx.export` and nothing of ours, and keeps the file."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import corpus_module
import torch
from corpus_entry import Entry

from export.capture.quiet import quiet

MADE = 1
"""Raise it when modules are drawn or exported in another way: what was kept is then made again."""


@dataclass(frozen=True)
class Route:
    """One way through an exporter.

    Attributes:
        dynamo: Whether torch.export traces it, or TorchScript.
        opset: The opset asked for.
        named: For dynamo: dynamic axes are told by name, so that equal names must be equal sizes, or left free.
    """

    dynamo: bool
    opset: int
    named: bool = True


ROUTES = {
    "d18": Route(True, 18, named=False),
    "d23": Route(True, 23),
    "d24": Route(True, 24, named=False),
    "ts17": Route(False, 17),
}


@dataclass(frozen=True)
class Exported:
    """A file, or why there is none.

    Attributes:
        path: The model; None where the exporter failed.
        reason: What the exporter said then.
    """

    path: Path | None
    reason: str = ""


def export(entry: Entry, impl: str, route: str, folder: Path, module: torch.nn.Module | None = None) -> Exported:
    """Returns the entry exported through a route, from the folder where it was exported before.

    Args:
        entry: The architecture.
        impl: "eager" or "sdpa".
        route: A name in ROUTES.
        folder: Where exports are kept; a change of versions, entry or of how modules are made gives another file.
        module: The module, where the caller has it.
    """
    path = folder / f"{entry.name}.{impl}.{route}.{_digest(entry)}.onnx"
    failure = path.with_suffix(".failed")
    if path.exists():
        return Exported(path)
    if failure.exists():
        return Exported(None, failure.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with quiet(), torch.no_grad():
            _write(module or corpus_module.build(entry, impl), entry, ROUTES[route], part)
    except Exception as error:  # whatever an exporter raises is its answer
        failure.write_text(_said(error))
        part.unlink(missing_ok=True)
        return Exported(None, _said(error))
    part.replace(path)
    return Exported(path)


def _write(module: torch.nn.Module, entry: Entry, route: Route, path: Path) -> None:
    inputs = corpus_module.draw(entry, 0)
    dynamic = {name: {i: a for i, a in enumerate(s.axes) if isinstance(a, str)} for name, s in entry.inputs.items()}
    if not route.dynamo:
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=route.opset,
            input_names=list(inputs),
            dynamic_axes=dynamic,
        )
        return
    free = torch.export.Dim.DYNAMIC
    shapes: Any = tuple({i: a if route.named else free for i, a in axes.items()} for axes in dynamic.values())
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=route.opset,
        dynamic_shapes=(shapes,),
        input_names=list(inputs),
        verbose=False,
        external_data=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(path))


def _digest(entry: Entry) -> str:
    made = [entry, MADE, *(version(p) for p in ("torch", "transformers", "onnxscript"))]
    return hashlib.sha256(repr(made).encode()).hexdigest()[:8]


def _said(error: BaseException) -> str:
    """Returns the innermost cause's first line, which names the operator or guard; the outer ones name a step."""
    seen: BaseException = error
    while (cause := seen.__cause__ or seen.__context__) is not None:
        seen = cause
    lines = [line.strip() for line in str(seen).strip().splitlines() if line.strip()]
    return f"{type(seen).__name__}: {lines[0] if lines else ''}"[:240]
