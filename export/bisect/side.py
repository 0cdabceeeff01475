"""What the user named, opened as a graph: a PyTorch factory or form, an ONNX file, an artifact folder, an engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.runner import Runner
from export import external_data, model_file
from export.errors import BackendMissingError, UsageError
from export.onnx_subject import dtype_of

IN_MEMORY = 3 << 29
"""Bytes of external weights that are read into memory; more stay in their file."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: As the user named it.
        model: The graph that is looked into; a module's is its export.
        weights: The folder of external weights that stay in their file, or None.
        source: A module's `Source`, else None.
        captured: A module's `Captured`, else None.
        runner: What gives an engine's outputs, else None; an engine shows nothing of its inside.
    """

    name: str
    model: ir.Model
    weights: Path | None = None
    source: Any = None
    captured: Any = None
    runner: Runner | None = None

    @property
    def dtype(self) -> str:
        """The dtype it computes in: "fp32", "fp16" or "bf16"."""
        return dtype_of(self.model)

    @property
    def is_module(self) -> bool:
        """Whether it is PyTorch."""
        return self.source is not None


def open_both(a: str, b: str, *, exporter: str = "dynamo", dtype: str | None = None) -> tuple[Side, Side]:
    """Returns both; a module is exported at the dtype of the other one's graph.

    Raises:
        UsageError: One cannot be read, or they compute in different precisions.
        BackendMissingError: An engine cannot run here, or the precision has no kernels on ONNX Runtime's CPU provider.
    """
    graphs = {text: _graph(text) for text in (a, b) if not _is_module(text)}
    if dtype is not None and len(graphs) == len({a, b}):
        raise UsageError(f"--dtype {dtype} is for a module's export; {a} and {b} keep the precision that they have.")
    dtype = dtype or next((side.dtype for side in graphs.values()), "fp32")
    one, two = (graphs.get(text) or _module(text, dtype, exporter) for text in (a, b))
    if one.dtype != two.dtype:
        raise UsageError(
            f"{a} computes in {one.dtype} and {b} in {two.dtype}: where a coarser precision parts from a finer one, "
            "its rounding hides the cause. Compare files of one precision, or name the module: its export fits."
        )
    if one.dtype == "bf16":
        raise BackendMissingError(
            "ONNX Runtime's CPU provider has no bfloat16 kernels for attention and matrix products, so the inside of a "
            "bf16 graph cannot be looked into. Compare at fp32 or fp16."
        )
    if one.runner is not None or (two.is_module and not one.is_module):
        return two, one  # what shows its tensors, PyTorch first of all, is what the other is judged by
    return one, two


def _is_module(text: str) -> bool:
    return not (text.endswith((".onnx", ".engine")) or Path(text).is_dir())


def _module(text: str, dtype: str, exporter: str) -> Side:
    from export.capture import capture, load_source

    source = load_source(text)
    captured = capture(source, dtype=dtype, exporter=exporter, opset=None)
    return Side(text, captured.model, source=source, captured=captured)


def _graph(text: str) -> Side:
    path = Path(text)
    if path.suffix == ".engine":
        from export.runnable import open_runnable

        graphs = sorted(path.parent.glob("lowered.*.onnx"))
        try:
            runner = open_runnable(path).runner
        except BackendMissingError as error:
            instead = f" Name {graphs[0]}, which it was built from, to compare that." if graphs else ""
            raise BackendMissingError(f"NOT RUN: {error}{instead}") from error
        if not graphs:
            raise UsageError(f"There is no lowered.*.onnx beside {path}: an engine shows only what its graph names.")
        model, weights = _read(graphs[0])
        return Side(text, model, weights, runner=runner)
    if path.is_dir():
        inside = [path / name for name in ("lowered.ort.onnx", "fused.onnx") if (path / name).is_file()]
        if not inside:
            raise UsageError(f"{path} holds neither lowered.ort.onnx nor fused.onnx: it is no artifact folder.")
        path = inside[0]
    model, weights = _read(path)
    return Side(text, model, weights)


def _read(path: Path) -> tuple[ir.Model, Path | None]:
    model = model_file.load(path)
    outside = [t for _, t in external_data.tensors(model) if isinstance(t, ir.ExternalTensor)]
    if sum(tensor.nbytes for tensor in outside) > IN_MEMORY:
        return model, path.parent
    return ir.external_data.load_to_model(model) if outside else model, None
