"""The dynamo exporter: torch.export, then torch.onnx.export on its program."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from export.capture import guards, program
from export.capture.quiet import plain_attention, quiet

if TYPE_CHECKING:
    import onnx_ir as ir


def export(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    axes: Mapping[str, Mapping[int, Any]],
    opset: int,
    pins: guards.Pins | None = None,
) -> "tuple[ir.Model, program.Program]":
    """Returns the graph as PyTorch wrote it, its shapes in PyTorch's symbols, and the program it was made from.

    Constants are folded, but PyTorch's own fusions at opset 23 are left out: the RotaryEmbedding they write has tables
    of batch 1 and runs at no other. Each node keeps its source line in metadata "pkg.torch.onnx.stack_trace".

    Args:
        module: In eval mode, at the dtype of the export.
        inputs: By forward's parameter names.
        axes: {leaf: {axis: what torch.export is told}}.
        opset: What to ask for; the caller checks what was written.
        pins: Filled with the lines that pinned a size, also where the export fails.

    Raises:
        Exception: Whatever tracing the module raises; `failures.explained` makes a CaptureError of it.
    """
    import onnxscript.optimizer

    made = program.run(module, inputs, axes, pins)
    with quiet(), plain_attention(), torch.no_grad():
        try:
            onnx_program = torch.onnx.export(
                made.exported, dynamo=True, opset_version=opset, optimize=False, verbose=False, external_data=False
            )
        except Exception as error:
            _note_line(error, made.exported)
            raise
        if onnx_program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        model: ir.Model = onnx_program.model
        onnxscript.optimizer.optimize(model)
    return model, made


def _note_line(error: Exception, exported: torch.export.ExportedProgram) -> None:
    """Adds to an error the stack trace of the operator that PyTorch says it could not translate."""
    chain: BaseException | None = error
    text = ""
    while chain is not None:
        text, chain = f"{text} {chain}", chain.__cause__ or chain.__context__
    named = re.search(r"OpOverload\(op='\w+\.(\w+)'", text) or re.search(r"translating node %(\w+)", text)
    for node in exported.graph.nodes:
        if named and named[1] in f"{node.target} {node.name}" and node.stack_trace:
            error.add_note(str(node.stack_trace))
            return
