"""The whole of an export: at a dtype, by an exporter, named, validated and run."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from export.capture import tree
from export.capture.contract import Captured, Source, TensorSpec
from export.errors import CaptureError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from export.capture.layout import Size

_LOG = logging.getLogger(__name__)


def capture(source: Source, *, dtype: str = "fp32", exporter: str = "dynamo", opset: int | None = None) -> Captured:
    """Returns the ONNX graph of a source, after it has been run against the module at three shapes.

    Args:
        source: From `load_source`.
        dtype: "fp32", "fp16" or "bf16": the module and its inputs are converted before the export.
        exporter: "dynamo" or "torchscript".
        opset: What to export; None leaves it to `opset.DEFAULT`.

    Raises:
        UsageError: The dtype, exporter or opset is unknown, or a weight does not fit the dtype.
        CaptureError: PyTorch cannot export the module, or what it wrote is invalid or computes something else; the
            message names the user's line and, where known, the rewrite.
    """
    from export.capture import check, naming, precision, symbols
    from export.capture import opset as opsets
    from export.capture import outputs as labels
    from export.capture.quiet import stdout_to_stderr

    asked = opsets.choose(exporter, opset)
    with stdout_to_stderr():
        module = precision.to_dtype(source.module, dtype)
        inputs = precision.cast(source.inputs, precision.DTYPES[dtype])
        outputs = _output_leaves(module, inputs, dtype)
        export = _by_dynamo if exporter == "dynamo" else _by_torchscript
        model, names, input_names, notes = export(source, module, inputs, asked)
        if len(model.graph.outputs) != len(outputs):
            raise CaptureError(
                f"The {exporter} exporter wrote {len(model.graph.outputs)} outputs, and the module returns "
                f"{len(outputs)} tensors ({', '.join(outputs)}). Return tensors, tuples and dicts only."
            )
        symbols.rename(model, names)
        unused = naming.apply(model, input_names, naming.output_names(outputs, input_names))
        unused += [name for name in _tensor_names(inputs) if name not in input_names]
        notes += [f"`{name}` reaches no output, so the graph has no such input." for name in unused]
        objection = opsets.refuse_wrong(model, asked, exporter)
        runs, unrun = check.module_runs(source, module, dtype)
        labels.label(model, [(one.sizes, [a.shape for a in one.own]) for one in runs])
        captured = _described(model, source, exporter, notes)
        notes += unrun
        notes += check.compared(captured, runs, dtype)
        if objection:
            notes.append(f"The onnx checker objects to the graph's types: {objection}")
    for note in (*source.warnings, *notes):
        _LOG.debug("%s", note)
    return replace(captured, warnings=(*source.warnings, *notes))


def _by_dynamo(
    source: Source, module: "torch.nn.Module", inputs: dict[str, Any], opset: int
) -> "tuple[ir.Model, dict[str, str], list[str], list[str]]":
    from export.capture import dynamo, failures, guards, symbols

    pins = guards.Pins({}, {})
    try:
        model, made = dynamo.export(module, inputs, _told(source), opset, pins)
    except Exception as error:  # torch.export raises whatever tracing the user's code raises
        raise failures.explained(error, "dynamo", type(module).__name__, pins=pins, dynamic=source.dynamic) from error
    shapes: Mapping[str, tuple[Size, ...]] = made.inputs
    names, notes = symbols.names_for(shapes, source.dynamic)
    return model, names, list(shapes), notes


def _by_torchscript(
    source: Source, module: "torch.nn.Module", inputs: dict[str, Any], opset: int
) -> "tuple[ir.Model, dict[str, str], list[str], list[str]]":
    from export.capture import failures, program, torchscript
    from export.capture.quiet import Heard

    heard = Heard()
    try:
        model = torchscript.export(module, inputs, source.dynamic, opset, heard)
    except Exception as error:  # a trace raises whatever the user's code raises
        raise failures.explained(error, "torchscript", type(module).__name__, log=heard.output) from error
    lines = torchscript.frozen(heard)
    values = program.value_lines(module, inputs, _told(source)) if lines else set()
    for line in lines:
        if (line.file, line.number) in values:
            raise failures.frozen_value(line, type(module).__name__)
    notes = [f"{torchscript.FROZE} at {line}: the graph takes the way this run took." for line in lines]
    return model, {}, [str(value.name) for value in model.graph.inputs], notes


def _told(source: Source) -> Mapping[str, Mapping[int, Any]]:
    """Returns what torch.export is told: the user's own dims, else that every named axis varies."""
    if source.shapes is not None:
        return source.shapes
    import torch

    hints = torch.export.Dim
    return {
        leaf: {axis: hints.DYNAMIC if name.isidentifier() else hints.AUTO for axis, name in axes.items()}
        for leaf, axes in source.dynamic.items()
    }


def _output_leaves(module: "torch.nn.Module", inputs: dict[str, Any], dtype: str) -> list[str]:
    """Returns the names of the tensors forward returns at the dtype, which it must be able to run at."""
    import torch

    from export.capture import failures
    from export.capture.inputs import call

    try:
        made = tree.outputs(call(module, inputs))
    except Exception as error:  # forward is the user's code
        raise failures.not_at_dtype(error, dtype, type(module).__name__) from error
    return [name for name, leaf in made if isinstance(leaf, torch.Tensor)]


def _tensor_names(inputs: dict[str, Any]) -> list[str]:
    return [name for name, leaf in tree.leaves(inputs) if hasattr(leaf, "shape")]


def _described(model: "ir.Model", source: Source, exporter: str, notes: list[str]) -> Captured:
    from export.capture import opset as opsets

    specs = []
    for value in model.graph.inputs:
        dims = [] if value.shape is None else [d if isinstance(d, int) else d.value or "?" for d in value.shape]
        dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
        specs.append(TensorSpec(str(value.name), dtype, tuple(dims)))
    names = tuple(str(value.name) for value in model.graph.outputs)
    return Captured(
        model, tuple(specs), names, opsets.written(model), exporter, tuple(notes), parameters=tuple(source.inputs)
    )
