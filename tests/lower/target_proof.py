"""What one target makes of one feature, and the proof of it: numbers, the parsed network, and the built engine."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lowering_graphs as g
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import target_truth
from target_feature import DIMS, Feature

from engines import vendor
from engines.build import build_engine
from engines.errors import ToolkitError
from engines.profiles import derive
from export import model_file
from export.errors import LoweringRefusedError
from export.lower import Lowered, for_ort_check, lower
from export.lower.lengths import POSITIVE

COLUMNS = {
    "onnx": ("onnx", "native"),
    "ort": ("ort", "native"),
    "tensorrt-rtx": ("tensorrt-rtx", "native"),
    "tensorrt": ("tensorrt", "native"),
    "tensorrt --attention plugin": ("tensorrt", "plugin"),
}
"""Columns of the table: (target, attention) of `lower`."""
SM = 89
OPERATORS = ("Attention", "TRT_Attention")
PLUGIN = ("attnproof", "RotaryAttention")
STANDARD = ("", "ai.onnx")

Cell = dict[str, Any]


def lowered(feature: Feature, column: str) -> Lowered | LoweringRefusedError:
    """Returns what `lower` says of a feature, or its refusal."""
    target, attention = COLUMNS[column]
    try:
        return lower(feature.make(), target, attention)
    except LoweringRefusedError as refusal:
        return refusal


def digest(made: Lowered | LoweringRefusedError) -> str:
    """Returns what a cell's proof belongs to: the sha256 of the lowered graph's text, or of the refusal."""
    text = str(made) if isinstance(made, LoweringRefusedError) else onnx.printer.to_text(ir.to_proto(made.model))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell(feature: Feature, column: str, folder: Path) -> Cell:
    """Returns a cell of the table: its outcome, and what was seen that proves it.

    Outcomes: "native" (as it is), "lowered" (other nodes, one attention operator), "plugin" (one plugin node),
    "decomposed" (written out, or built unfused), "passed on" (a foreign operator that the user's library computes),
    "refused" (with the sentence), and "WRONG" where a proof fails, which no cell may be.
    """
    made = lowered(feature, column)
    found: Cell = {"digest": digest(made)}
    if isinstance(made, LoweringRefusedError):
        return {**found, "outcome": "refused", "sentence": str(made)}
    found["steps"] = list(dict.fromkeys(step.action for step in made.steps))
    target = COLUMNS[column][0]
    found["outcome"] = _outcome(made, target)
    wrong = [*_numbers(feature, made, target, found)]
    if target.startswith("tensorrt"):
        wrong += dropped(made.model)
    if target == "tensorrt-rtx" and not wrong:
        wrong += _engine(made.model, folder, found)
    elif target == "tensorrt":
        found["engine"] = "NOT RUN"
    return {**found, "outcome": "WRONG", "wrong": wrong} if wrong else found


def _outcome(made: Lowered, target: str) -> str:
    nodes = list(made.model.graph.all_nodes())
    if target == "tensorrt" and any((n.domain, n.op_type) == PLUGIN for n in nodes):
        return "plugin"
    known = STANDARD if target == "onnx" else (*STANDARD, "com.microsoft")
    if any(n.domain not in known for n in nodes) and not made.model.functions:
        return "passed on"
    if any(step.action == "decompose" for step in made.steps):
        return "decomposed"
    return "lowered" if made.steps else "native"


def _numbers(feature: Feature, made: Lowered, target: str, found: Cell) -> list[str]:
    """Compares at both sizes; returns what is wrong, and notes the largest quotient of error and bound."""
    graph = feature.make()
    truth = feature.truth() if feature.truth else graph
    if found["outcome"] == "passed on" or _not_standard(truth):
        found["numbers"] = "the operator's own"
        return []
    worst, by = 0.0, set()
    for sizes in feature.sizes:
        given = feeds(graph, sizes)
        expected = target_truth.wanted(graph, truth, given)
        try:
            got, way = run(made.model, target, given)
        except Exception as error:  # whatever a runtime raises: the graph does not run there
            return [f"does not run: {type(error).__name__}: {str(error)[:300]}"]
        by.add(way)
        worst = max(worst, *(w.ratio(np.asarray(x)) for w, x in zip(expected, got, strict=True)))
    found["numbers"] = f"{worst:.2f} of the bound, {' and '.join(sorted(by))}"
    if worst <= 1:
        return []
    known = REFERENCE.get(feature.name) if target == "onnx" else None
    if known:
        found["numbers"] = known
        return []
    return [f"error is {worst:.3g} times its bound"]


def _not_standard(model: ir.Model) -> bool:
    return any(n.domain not in STANDARD for n in model.graph.all_nodes()) and not model.functions


_ROW = "onnx's reference implementation places a mask of one row at query 0"
REFERENCE = {
    "scale negative": "onnx's reference implementation takes the root of the scale and gives NaN",
    "scores, mode 0, causal, softcap, bool mask": "onnx's reference implementation shows mode 0 after the softcap",
    "past and present, causal, bool mask": _ROW,
    "head size 8, causal, bool mask": _ROW,
}
"""Where onnx 1.23's reference implementation is not what the operator's text says."""


def feeds(graph: ir.Model, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Returns random inputs of one size: lengths within K, positions within the tables."""
    given = g.feeds(graph, sizes=sizes)
    for name, array in given.items():
        if array.dtype == np.int64 and array.ndim == 1:
            promised = any(POSITIVE in node.metadata_props for node in graph.graph)
            given[name] = np.clip(array, int(promised), sizes["T"])
        if name in "cs" and array.ndim and array.dtype.kind in "fV":  # cosines and sines
            given[name] = (np.cos if name == "c" else np.sin)(array.astype(np.float64)).astype(array.dtype)
    return given


def run(model: ir.Model, target: str, given: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Returns the outputs of a lowered graph, and who computed them."""
    if target == "onnx":
        with np.errstate(all="ignore"):
            return _reference(model, given), "onnx's reference implementation"
    plain = model if target == "ort" else for_ort_check(model)
    if any(v.dtype == ir.DataType.BFLOAT16 for n in plain.graph for v in n.outputs):
        return _reference(plain, given), "onnx's reference implementation (the CPU provider has no bfloat16: NOT RUN)"
    return g.run_ort(plain, given), "ONNX Runtime"


def _reference(model: ir.Model, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return list(onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, dict(given)))


def dropped(model: ir.Model) -> list[str]:
    """Returns what TensorRT's importer would refuse, drop or misread of a graph that says it is lowered for it.

    Written from what the importer was measured to do, not from the rows that lowering follows.
    """
    wrong = [f"function {f.name}" for f in model.functions.values()]
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) != ("", "Attention"):
            continue
        q, k, v = (value for value in node.inputs[:3] if value is not None)
        rest = [*node.inputs[3:], *[None] * 4][:4]
        mask = rest[0]
        attributes = {n: a.value for n, a in node.attributes.items()}
        said = {
            "a mask beside is_causal": mask is not None and attributes.get("is_causal", 0) == 1,
            "a past": rest[1] is not None or rest[2] is not None,
            "nonpad_kv_seqlen": rest[3] is not None,
            "a second output": len([o for o in node.outputs if o.name]) > 1,
            "softcap": bool(attributes.get("softcap", 0.0)),
            "softmax_precision": "softmax_precision" in attributes,
            "a window": any(attributes.get(f"{side}_window_size", -1) >= 0 for side in ("left", "right")),
            "float64": q.dtype == ir.DataType.DOUBLE,
            "K or V of another type": not q.dtype == k.dtype == v.dtype,
            "a bool mask": mask is not None and mask.dtype == ir.DataType.BOOL,
            "a mask of another type": mask is not None and mask.dtype not in (q.dtype, ir.DataType.BOOL),
            "a mask without four axes": mask is not None and (mask.shape is None or len(mask.shape) != 4),
            "a scale that is not positive": not attributes.get("scale", 1.0) > 0,
            "V's head size": "q_num_heads" not in attributes and _size(v) != _size(q),
        }
        wrong += [f"{what} on {node.name}" for what, so in said.items() if so]
    return wrong


def _size(value: ir.Value) -> object:
    return None if value.shape is None else value.shape[-1]


def _engine(model: ir.Model, folder: Path, found: Cell) -> list[str]:
    """Builds the engine, reads kernels from the builder's log, and compares the parsed network with the graph."""
    path = folder / "model.onnx"
    model_file.save(model, path)
    inputs = {
        v.name or "": tuple(d if isinstance(d, int) else d.value or "" for d in v.shape or ())
        for v in model.graph.inputs
    }
    try:
        dims = {n: r for n, r in DIMS.items()}
        engine = build_engine(path, folder / "model.engine", vendor="tensorrt-rtx", sm=SM, profile=derive(inputs, dims))
    except ToolkitError as error:
        return [f"does not build: {error}"]
    choices = list(engine.attentions.values())
    expected = sum(n.op_type in OPERATORS for n in model.graph.all_nodes())
    if any(choice.fused is None for choice in choices) or len(choices) < expected:
        return [f"cannot be told from the log: {[c.why for c in choices]}"]
    if not choices:
        found["engine"] = "builds"
    elif all(choice.fused for choice in choices):
        found["engine"] = "fused"
    else:
        found["engine"] = "decomposed"
        found["why"] = sorted({c.why for c in choices if not c.fused})
    return parsed_otherwise(path, model)


def parsed_otherwise(path: Path, model: ir.Model) -> list[str]:
    """Returns where TensorRT-RTX's network says something else of an Attention node than the graph does."""
    loaded = vendor.load("tensorrt-rtx")
    logger = loaded.logger(lambda severity, text: None)
    builder = loaded.builder(logger)
    network = loaded.network(builder)
    parser = loaded.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return ["the parser refuses it"]
    layers = {}
    for at in range(network.num_layers):
        layer = network.get_layer(at)
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = loaded.module.IAttentionInputLayer
            layers[layer.attention.name] = layer.attention
    wrong = []
    for node in model.graph:
        if node.domain or node.op_type not in OPERATORS:
            continue
        seen = layers.get(node.name)
        if seen is None:
            wrong.append(f"{node.name} is no attention in the network")
            continue
        causal, kind = node.attributes.get("is_causal"), node.attributes.get("causal_kind")
        said = "UPPER_LEFT" if causal is not None and causal.as_int() else "NONE"
        if seen.causal_kind.name != (said if kind is None else kind.as_string().upper()):
            wrong.append(f"{node.name} is {seen.causal_kind.name} in the network")
        if (seen.mask is not None) != (len(node.inputs) > 3 and node.inputs[3] is not None):
            wrong.append(f"{node.name}: the network and the graph differ about a mask")
        if (seen.key_value_lengths is not None) != (node.op_type == "TRT_Attention"):
            wrong.append(f"{node.name}: the network and the graph differ about lengths")
    return wrong
