"""What a vendor's parser or builder said when it failed, as sentences that name the node and say what to do.

The symptoms are those of tensorrt_rtx 1.7.1.116. One of them is a crash: the importer multiplies Q and K of an
Attention by sqrt(scale), the builder merges equal products, and where one product then feeds two attention inputs (two
attentions that share K, or Q; or Q and K of one attention being one tensor) it segfaults, unless the scale is 1.
"""

import re
import signal
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from engines.graph import AttentionNode, Graph
from engines.kernels import HEAD_SIZES

_NOISE = ("catchCudaError", "Invalid Node - ")  # the first: no driver, which a build for another machine does not need
_SOURCE = re.compile(r"\s*(?:\.\s*)?In \w+ at /_src/\S+\)?$")
_PREFIX = re.compile(r"^(?:\w+::\w+: )?Error Code \d+: [\w ]+? \((?=\S)")
_VERDICT = re.compile(r"Error is:\s*(.+?)(?:;|\n|$)")
_QUOTED = re.compile(r'&& "(.*)"$')


def parse_failure(title: str, errors: Sequence[dict[str, Any]], log: Sequence[tuple[str, str]]) -> str:
    """Returns why the ONNX file was refused: every error the parser has, each with its node.

    Args:
        title: The vendor, e.g. "TensorRT-RTX 1.7.1.116".
        errors: {"name", "op", "text", "check", "functions"} of each parser error.
        log: (severity, message) of everything it logged.
    """
    sentences = [_parser_sentence(error, log) for error in errors] or [last_error(log)]
    return f"{title} refuses the model: {' '.join(dict.fromkeys(sentences))} {_PARSE_CURE}"


def build_failure(title: str, sm: int, graph: Graph, log: Sequence[tuple[str, str]]) -> str:
    """Returns why the parsed model could not be built for an architecture."""
    errors = " ".join(text for severity, text in log if severity.endswith("ERROR"))
    said = last_error(log)
    if "is_decomposable" in errors:
        named = [a for a in graph.attentions if a.op != "Softmax" and (cause := _no_kernel(a)) and cause]
        blame = "; ".join(f"{a.name!r} ({_no_kernel(a)})" for a in named) or "one of its Attention nodes"
        return (
            f"{title} has no fused attention kernel on SM {sm} for {blame}, and may not take it apart: the node lacks "
            "the attribute TRT_decomposable=1. `python -m export build` sets it while lowering; or use --dtype fp16."
        )
    if "element type" in errors and "differs from" in errors:
        masks = ", ".join(repr(a.name) for a in graph.attentions if a.op != "Softmax")
        hint = f" An Attention's float mask must have Q's dtype (here: {masks})." if masks else ""
        return f"{title} could not build the model for SM {sm}: {said}{hint}"
    return f"{title} could not build the model for SM {sm}: {said} Run again with -v for the builder's whole log."


def crash(title: str, code: int, graph: Graph, log: Sequence[tuple[str, str]], stderr: str) -> str:
    """Returns what is known of a builder process that ended without an answer.

    Args:
        title: The vendor.
        code: Exit status as `subprocess` gives it, negative for a signal.
        graph: Facts of the ONNX file.
        log: What the builder had logged by then.
        stderr: What the process wrote there.
    """
    how = _signal(-code) if code < 0 else f"exit status {code}"
    said = f" Its last message: {sentence(log[-1][1])}" if log else ""
    printed = f" It printed: {stderr.strip().splitlines()[-1][:300]}" if stderr.strip() else ""
    pairs = _shared_products(graph.attentions)
    if pairs and code < 0:
        listed = "; ".join(pairs[:4])
        return (
            f"{title} crashed ({how}) while it built the model. It is known to where one scaled tensor feeds two "
            f"attention inputs: {listed}. Multiply Q by the scale before the Attention, and give the node scale=1."
        )
    hint = " Was the machine out of memory?" if code == -getattr(signal, "SIGKILL", 9) else ""
    return f"{title} crashed ({how}) while it built the model.{hint}{said}{printed}"


def last_error(log: Sequence[tuple[str, str]]) -> str:
    """Returns the last error the vendor logged, as a sentence; or that it logged none."""
    errors = [text for severity, text in log if severity.endswith("ERROR") and "catchCudaError" not in text]
    return sentence(errors[-1]) if errors else "it gave no reason."


def sentence(text: str) -> str:
    """Returns a vendor's message without its error codes, source places and the driver's complaints."""
    verdict = _VERDICT.search(text)  # the compiler's: what comes before and after it are its own function names
    if verdict:
        return verdict[1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not any(noise in line for noise in _NOISE)] or lines[:1]
    clean = " ".join(_PREFIX.sub("", _SOURCE.sub("", line)) for line in kept)
    quoted = _QUOTED.search(clean)
    clean = (quoted[1] if quoted else clean).strip()
    return clean if clean.endswith((".", "?", "!")) else f"{clean}."


_PARSE_CURE = (
    "Export those nodes differently; a graph that was not lowered for this target needs that first "
    "(`python -m export build` does it)."
)


def _parser_sentence(error: dict[str, Any], log: Sequence[tuple[str, str]]) -> str:
    where = f"node {error['name']!r} ({error['op']})" if error["op"] else "the file"
    inside = f", called by {error['functions'][-1]}" if error["functions"] else ""
    if "Plugin not found" in error["text"]:
        return f"{where}{inside}: it has no importer for {error['op']}."
    if error["text"].strip() == "false":
        return f"{where}{inside}: it does not support {error['op']}."
    if "Failed to import initializer" in error["text"]:
        causes = [sentence(t.split(": ", 1)[-1]) for s, t in log if s == "ERROR" and t.startswith("WeightsContext")]
        weight = error["text"].rsplit(": ", 1)[-1]
        return f"weight {weight!r} cannot be read: {causes[-1] if causes else 'no reason given.'}"
    return f"{where}{inside}: {sentence(error['text'])}"


def _no_kernel(attention: AttentionNode) -> str:
    low, high = HEAD_SIZES
    if attention.dtype == "float32":
        return "float32"
    if attention.head_size is not None and not low <= attention.head_size <= high:
        return f"head size {attention.head_size}"
    return ""


def _shared_products(attentions: Sequence[AttentionNode]) -> list[str]:
    """Returns the attentions whose scaled Q or K is the same product, in words."""
    scaled = [a for a in attentions if a.op != "Softmax" and a.scale != 1.0]
    found = [f"{a.name!r} reads {a.query!r} as Q and as K" for a in scaled if a.query == a.key]
    for a, b in combinations(scaled, 2):
        both = {a.query, a.key} & {b.query, b.key}
        if both and a.scale == b.scale:
            found.append(f"{a.name!r} and {b.name!r} both read {sorted(both)[0]!r} with one scale")
    return found


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
