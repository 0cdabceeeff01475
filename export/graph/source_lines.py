"""Where in the user's PyTorch code a node comes from, as far as the exporter recorded it."""

import ast
import itertools
import re

import onnx_ir as ir

_TRACES = ("pkg.torch.onnx.stack_trace", "pkg.onnxscript.stack_trace")
"""Metadata of the dynamo exporter: a traceback, the innermost call last."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of the dynamo exporter: the paths of the modules around a node, the outermost first, then its own name."""

_OPERATOR = re.compile(r"[A-Z]\w*")
"""The word of a TorchScript node's name that follows the modules': `/layers.0/attention/Softmax_1`."""

_FRAME = re.compile(r"(?P<file>.+)\((?P<line>\d+)\): (?P<function>.+)")
"""A line of the TorchScript exporter's doc strings (written with `verbose=True`), the innermost call first."""


def source_line(node: ir.Node) -> str | None:
    """Returns the user's PyTorch line the exporter recorded for a node, as `file.py:12 in forward: code`, or None."""
    for key in _TRACES:
        found = _from_traceback(node.metadata_props.get(key, ""))
        if found is not None:
            return found
    for line in (node.doc_string or "").splitlines():
        frame = _FRAME.fullmatch(line.strip())
        if frame is not None and _is_users(frame["file"]):
            return f"{frame['file']}:{frame['line']} in {frame['function']}"
    return None


def module_path(node: ir.Node) -> str | None:
    """Returns the path of the module whose forward made a node, e.g. `layers.3.attention`; None where not recorded.

    The dynamo exporter lists the paths it was in; the TorchScript exporter makes them the node's name.
    """
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is not None:
        try:
            names = [str(name) for name in ast.literal_eval(scopes)]
        except (ValueError, SyntaxError, TypeError):
            return None
        return names[-2] or None if len(names) > 1 else None  # the last is the operator's own
    first, *words = (node.name or "").split("/")
    path = [] if first else list(itertools.takewhile(lambda word: not _OPERATOR.fullmatch(word), words))
    return ".".join(path) or None


def _is_users(file: str) -> bool:
    """Says whether a file is not PyTorch's own; a library built on it is the user's, as far as we are concerned."""
    path = file.replace("\\", "/")
    return (
        "/torch/nn/" not in path and "/torch/_" not in path and "/torch/jit/" not in path and "/torch/onnx/" not in path
    )


def _from_traceback(trace: str) -> str | None:
    lines = [line for line in trace.splitlines() if line.strip()]
    for at in range(len(lines) - 1, -1, -1):
        head = lines[at].strip()
        if head.startswith("File ") and _is_users(head):
            parts = head.removeprefix("File ").split(", ")
            code = lines[at + 1].strip() if at + 1 < len(lines) else ""
            where = parts[0].strip('"') + ":" + parts[1].removeprefix("line ") if len(parts) > 1 else parts[0]
            function = f" {parts[2]}" if len(parts) > 2 else ""
            return f"{where}{function}: {code}" if code else f"{where}{function}"
    return None
