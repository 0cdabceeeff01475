"""The TorchScript exporter: a trace of one run, with the names and source lines the dynamo exporter gives."""

import contextlib
import linecache
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from export.capture import repairs, tree
from export.capture.failures import STACK_TRACE
from export.capture.frames import Line, is_users
from export.capture.quiet import Heard, plain_attention, quiet

if TYPE_CHECKING:
    import onnx_ir as ir

FROZE = "The trace made a constant of a value"
"""How a note begins that names a line where a tensor became a Python value."""

_FRAME = re.compile(r"^(.+)\((\d+)\): (\S+)$")


class Flat(torch.nn.Module):
    """Calls a module with nested keyword inputs, given its tensors by position, and returns its tensors as a tuple.

    A trace knows neither keywords, None nor dicts.
    """

    def __init__(self, module: torch.nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self._inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the tensors of module(**inputs), in the order of `tree.outputs`."""
        left = iter(tensors)
        inputs = tree.rebuild(self._inputs, lambda _, leaf: next(left) if isinstance(leaf, torch.Tensor) else leaf)
        made = tree.outputs(self.module(**inputs))
        return tuple(leaf for _, leaf in made if isinstance(leaf, torch.Tensor))


def export(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
    heard: Heard,
) -> "ir.Model":
    """Returns the graph as PyTorch wrote it, its inputs under their leaf names and dynamic axes under theirs.

    An input that reaches no output is dropped by PyTorch. Node lines are moved from doc strings to metadata.

    Args:
        module: In eval mode, at the dtype of the export.
        inputs: By forward's parameter names.
        dynamic: {leaf: {axis: name}}.
        opset: What to ask for; the caller checks what was written.
        heard: Filled with what the exporter said; its TracerWarnings name what became a constant.

    Raises:
        Exception: Whatever tracing the module raises; `failures.explained` makes a CaptureError of it.
    """
    import onnx_ir as ir

    flat = Flat(module, inputs).eval()
    tensors = {name: leaf for name, leaf in tree.leaves(inputs) if isinstance(leaf, torch.Tensor)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with _heard(heard), plain_attention(), torch.no_grad(), repairs.registered(opset):
            torch.onnx.export(
                flat,
                tuple(tensors.values()),
                str(path),
                dynamo=False,
                verbose=True,  # else the exporter strips the source lines
                opset_version=opset,
                input_names=list(tensors),
                dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
            )
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    repairs.casts(model)
    _unwrap_names(model)
    for node in model.graph.all_nodes():
        if node.doc_string:
            node.metadata_props[STACK_TRACE] = _stack_trace(node.doc_string)
            node.doc_string = None
    return model


def frozen(heard: Heard) -> list[Line]:
    """Returns the lines of the user's code where the trace turned a tensor, or a size, into a Python value."""
    lines = []
    for warning in heard.caught:
        if not issubclass(warning.category, TracerWarning) or not is_users(warning.filename):
            continue
        line = Line(warning.filename, warning.lineno, linecache.getline(warning.filename, warning.lineno).strip())
        lines.append(line)
    return list(dict.fromkeys(lines))


@contextlib.contextmanager
def _heard(heard: Heard) -> Iterator[None]:
    said = Heard()
    try:
        with quiet() as said:
            yield
    finally:
        heard.caught, heard.log, heard.output = said.caught, said.log, said.output


def _stack_trace(doc: str) -> str:
    """Returns TorchScript's "file(line): function" lines, innermost first, in Python's traceback format."""
    lines = []
    for text in doc.splitlines():
        frame = _FRAME.match(text.strip())
        if frame is None:
            continue
        file, number, function = frame[1], int(frame[2]), frame[3]
        if file == __file__:
            break  # what called the module is not the user's
        if not is_users(file) and function in ("_call_impl", "_wrapped_call_impl", "_slow_forward"):
            continue
        line = Line(file, number, linecache.getline(file, number).strip())
        lines.append(f'File "{line.file}", line {line.number}, in {function}\n    {line.code}')
    return "\n  ".join(reversed(lines))


def _unwrap_names(model: "ir.Model") -> None:
    """Takes the name of the wrapper out of every name: "/module/q/MatMul" was "q" in the user's module."""
    from export.capture.naming import set_name
    from export.capture.symbols import values

    for node in model.graph.all_nodes():
        if node.name:
            node.name = node.name.replace("/module/", "/", 1)
    for value in list(values(model)):
        name = value.name or ""
        plain = name.replace("/module/", "/", 1).removeprefix("module.")
        if plain != name:
            set_name(model.graph, value, plain)
