"""A failed export as one sentence: what happened, the user's line, and the rewrite where there is a known one."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from export.capture import guards
from export.capture.frames import Line, quoted_line, user_line
from export.capture.remedies import remedy
from export.errors import CaptureError

if TYPE_CHECKING:
    import onnx_ir as ir

STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""The metadata key under which a node's source lines are recorded."""

_VIOLATED = re.compile(r"marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)")

# What torch.export appends to its errors is about torch.export's own functions.
_ADVICE = re.compile(r"\s*The error above occurred when calling torch\.export")

# What freezes without failing: the check finds that the graph is wrong, and these say where to look.
_SUSPECT = re.compile(r"repeat_interleave\(|\.item\(|\.tolist\(|\.numpy\(|\bint\(")


def explained(
    error: Exception,
    exporter: str,
    module: str,
    *,
    pins: guards.Pins | None = None,
    dynamic: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
    log: str = "",
) -> CaptureError:
    """Returns the CaptureError for what an exporter raised.

    Args:
        error: What it raised.
        exporter: "dynamo" or "torchscript".
        module: Name of the module's class.
        pins: The lines at which torch.export pinned sizes.
        dynamic: {leaf: {axis: name}} of the axes that were to vary.
        log: What the exporter printed; TorchScript's dump of the graph names lines there.
    """
    head = f"The {exporter} exporter could not export {module}: "
    violated = _pinned(error, pins, dynamic)
    if violated is not None:
        return CaptureError(head + violated)
    text = " ".join(str(error).split())
    traces = "\n".join([str(error), *getattr(error, "__notes__", [])])
    line = user_line(error) or quoted_line(traces) or _dumped_line(text, log)
    where = f", at {line}" if line else ""
    known = remedy(_chain(error), line.code if line else "")
    if known is not None:
        return CaptureError(f"{head}{known[0]}{where}. {known[1]}")
    other = "torchscript" if exporter == "dynamo" else "dynamo"
    said = _ADVICE.split(text)[0][:400].rstrip(" .")
    cure = "Rewrite that line, or try" if line else "Try"
    return CaptureError(f"{head}{type(error).__name__}: {said}{where}. {cure} --exporter {other}.")


def not_at_dtype(error: Exception, dtype: str, module: str) -> CaptureError:
    """Returns the CaptureError for a module that runs in fp32 and raises at the dtype of the export."""
    line = user_line(error)
    where = f", at {line}" if line else ""
    known = remedy(_chain(error), line.code if line else "")
    what, rewrite = known or (f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", "Export in fp32.")
    return CaptureError(f"{module} does not run in {dtype}: {what}{where}. {rewrite}")


def refused(model: "ir.Model", error: Exception, when: str) -> CaptureError:
    """Returns the CaptureError for a graph that was exported and that ONNX Runtime refuses.

    Args:
        model: The graph.
        error: What ONNX Runtime raised.
        when: "when it loads it", or at which sizes.
    """
    text = " ".join(str(error).split())
    quoted = set(re.findall(r"""['"(]([^'"()]+)['")]""", text))
    node = next((node for node in model.graph.all_nodes() if node.name in quoted), None)
    line = quoted_line(node.metadata_props.get(STACK_TRACE, "")) if node is not None else None
    where = f" (from {line})" if line else ""
    known = remedy(text, line.code if line else "")
    what, rewrite = known or ("the cause is not known", "Rewrite that line, or try the other --exporter.")
    message = re.sub(r"/\S*onnxruntime\S*/|\S+::\S+\([^)]*\)\s?", "", text)[:300]
    return CaptureError(
        f"The graph was exported, but ONNX Runtime refuses it {when}: {what}{where}. {rewrite} It said: {message}"
    )


def frozen(model: "ir.Model", problem: str, notes: Iterable[str] = ()) -> CaptureError:
    """Returns the CaptureError for a graph that runs and computes something else than the module.

    Args:
        model: The graph.
        problem: Which output, at which sizes, by how much.
        notes: What the exporter said it froze.
    """
    traces = (node.metadata_props.get(STACK_TRACE, "") for node in model.graph.all_nodes())
    lines = [line for line in map(quoted_line, traces) if line is not None and _SUSPECT.search(line.code)]
    where = " ".join(notes)
    known = remedy("", lines[0].code) if lines else None
    if known is not None:
        where = f"Look at {lines[0]}: {known[0]}. {known[1]} {where}"
    return CaptureError(
        f"The exported graph is not the module: {problem}. Something was frozen into the graph, a size or a branch on "
        f"values. {where or 'Take sizes from x.shape and choose by torch.where, or try the other --exporter.'}".strip()
    )


def frozen_value(line: Line, module: str) -> CaptureError:
    """Returns the CaptureError for a trace that would follow the example's values for ever.

    Args:
        line: Where forward reads a tensor's value as a Python one.
        module: Name of the module's class.
    """
    what, rewrite = remedy("data-dependent", line.code) or ("", "")
    return CaptureError(
        f"The torchscript exporter would freeze a value of the example inputs into {module}: {what}, at {line}. "
        f"{rewrite}"
    )


def _chain(error: BaseException) -> str:
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        parts.append(f"{type(seen).__name__}: {' '.join(str(seen).split())}")
        seen = seen.__cause__ or seen.__context__
    return " | ".join(parts)


def _pinned(error: Exception, pins: guards.Pins | None, dynamic: Mapping[str, Mapping[int, str]]) -> str | None:
    sentences = []
    rewrite = "Take sizes from x.shape or use -1, cut tables to the length, or leave the axis out of dynamic_shapes."
    for what, size in _VIOLATED.findall(str(error)):
        named = ((leaf, axis) for leaf, axes in dynamic.items() for axis, name in axes.items() if name == what)
        axis = guards.axis(what) or next(named, None)
        if axis is None:
            continue
        line = pins.lines.get(axis) if pins is not None else None
        at = f", at {line}" if line else ""
        sentences.append(f"axis {axis[1]} of `{axis[0]}` is to vary, but the code fixes it to {size}{at}.")
        known = remedy("", line.code) if line else None
        rewrite = known[1] if known else rewrite
    return " ".join([*dict.fromkeys(sentences), rewrite]) if sentences else None


def _dumped_line(text: str, log: str) -> Line | None:
    operator = re.search(r"'(aten::\w+)'", text)
    if operator is None:
        return None
    found = re.search(rf"= {operator[1]}\(.*# (\S.*?):(\d+):\d+", log)
    return quoted_line(f'File "{found[1]}", line {found[2]}') if found else None
