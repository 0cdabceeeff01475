"""What a feature's graph means, in float64, and how far a right answer may be from that.

The graph is evaluated by ONNX's reference implementation with every floating-point type made float64, and Attention
replaced by `lowering_oracle`, which is written from the operator's text alone. The bound of an attention's output is
the derived one of `export.parity`; of its scores, that of three roundings of every product; of anything else, twice the
error that the reference implementation itself makes at the graph's own types, and 4 ulp.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import lowering_graphs as g
import lowering_oracle
import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx.reference.op_run import OpRun

from export.parity.attention import attention_truth
from export.parity.precision import precision

WIDE = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT}
NAMES = {np.dtype(np.float16): "fp16", np.dtype(ml_dtypes.bfloat16): "bf16", np.dtype(np.float32): "fp32"}
FILL = -1e4
"""Scores below it are a mask's fill, which half precision rounds the scores' differences away at."""


@dataclass(frozen=True)
class Wanted:
    """One output in float64.

    Attributes:
        value: The numbers.
        bound: The largest |error| of each.
        loose: Rows whose every score is a mask's fill: right if not 0 and within V's range.
    """

    value: np.ndarray
    bound: np.ndarray
    loose: np.ndarray

    def ratio(self, got: np.ndarray) -> float:
        """Returns the largest quotient of error and bound; inf for NaN, an infinity elsewhere, or a loose row of 0."""
        if got.shape != self.value.shape:
            return float("inf")
        got = got.astype(np.float64)
        infinite = np.isinf(self.value)
        if not np.array_equal(np.where(infinite, self.value, 0), np.where(np.isinf(got), got, 0)):
            return float("inf")
        rows = got.reshape(-1, got.shape[-1])[self.loose.reshape(-1)]
        if (rows == 0).all(-1).any():
            return float("inf")
        error = np.abs(np.where(infinite, 0, got) - np.where(infinite, 0, self.value))
        error[np.isnan(error)] = np.inf
        return float(np.max(np.divide(error, self.bound, out=np.where(error > 0, np.inf, 0.0), where=self.bound > 0),
                            initial=0.0))  # fmt: skip


def wanted(graph: ir.Model, truth: ir.Model, given: Mapping[str, np.ndarray]) -> list[Wanted]:
    """Returns the outputs of `graph` as `truth`, the same graph or one that says it in standard operators, has them."""
    proto, model = ir.to_proto(graph), ir.to_proto(truth)
    types = [g.NUMPY[o.type.tensor_type.elem_type] for o in proto.graph.output]
    record: dict[str, Wanted] = {}
    single = [n.op_type for n in model.graph.node].count("Attention") == 1
    values = _wide(model, given, types[0], record)
    own: list[np.ndarray] | None = None
    made = []
    for at, (output, value) in enumerate(zip(model.graph.output, values, strict=True)):
        if single and output.name in record:
            made.append(record[output.name])
            continue
        if own is None:
            with np.errstate(all="ignore"):
                own = list(onnx.reference.ReferenceEvaluator(model).run(None, _known(model, given)))
        none = np.zeros(value.shape[:-1], bool)
        if types[at].kind not in "fV":
            made.append(Wanted(value, np.zeros(value.shape), none))
            continue
        reach = float(np.max(np.abs(own[at].astype(np.float64) - value), initial=0.0))
        made.append(Wanted(value, 2 * reach + 4 * _ulp(value, types[at]), none))
    return made


def _ulp(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float64:
        return np.spacing(np.abs(value))
    return precision(NAMES[dtype]).ulp(value)


def _known(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {i.name: given[i.name] for i in model.graph.input}


def _wide(
    model: onnx.ModelProto, given: Mapping[str, np.ndarray], dtype: np.dtype, record: dict[str, Wanted]
) -> list[np.ndarray]:
    """Runs a model with float64 in place of every floating-point type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if value.type.tensor_type.elem_type in WIDE:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in WIDE:
                attribute.i = onnx.TensorProto.DOUBLE
    feeds = {n: x.astype(np.float64) if x.dtype.kind in "fV" else x for n, x in _known(model, given).items()}

    class Attention(OpRun):
        op_domain = ""

        def _run(self, *inputs: np.ndarray, **attributes: object) -> tuple[np.ndarray, ...]:
            set_here = {a.name for a in self.onnx_node.attribute}
            asked = {n: v for n, v in attributes.items() if n in set_here}
            results = lowering_oracle.attention(*inputs, **asked)
            _note(self.onnx_node, inputs, asked, results, dtype, record)
            return results[: len(self.onnx_node.output)]

    with np.errstate(all="ignore"):
        return list(onnx.reference.ReferenceEvaluator(copy, new_ops=[Attention]).run(None, feeds))


def _note(
    node: onnx.NodeProto,
    inputs: tuple[np.ndarray, ...],
    asked: dict[str, object],
    results: tuple[np.ndarray, ...],
    dtype: np.dtype,
    record: dict[str, Wanted],
) -> None:
    """Records the bounds of one attention's outputs."""
    masked = {**asked, "qk_matmul_output_mode": 2}
    scores = lowering_oracle.attention(*inputs, **masked)[3]
    plain = lowering_oracle.attention(*inputs, **{**asked, "qk_matmul_output_mode": 1})[3]
    q, k, v = inputs[0], results[1], results[2]
    if q.ndim == 3:
        q = lowering_oracle._split(q, int(str(asked["q_num_heads"])))
    scale = asked.get("scale")
    bias = np.where(np.isneginf(scores), -np.inf, scores - plain)
    found = attention_truth(q, k, v, scale=scale, mask=bias, softcap=float(str(asked.get("softcap", 0.0))))  # type: ignore[arg-type]
    name = NAMES.get(dtype, "fp32")
    softmax = {10: "fp16", 16: "bf16"}.get(int(str(asked.get("softmax_precision", 0))), name)
    name = max(name, softmax, key=lambda each: precision(each).u)
    least = np.max(scores, axis=-1)
    loose = np.isfinite(least) & (least < FILL)
    bound = found.elementwise(name, fused=False)
    y = results[0]
    flat = y.ndim == 3
    if flat:
        bound = np.swapaxes(bound, 1, 2).reshape(y.shape)
        loose = loose.any(1)
    record[node.output[0]] = Wanted(y, bound, loose)
    for at in (1, 2):
        if len(node.output) > at and node.output[at]:
            record[node.output[at]] = Wanted(
                results[at], np.zeros(results[at].shape), np.zeros(results[at].shape[:-1], bool)
            )
    if len(node.output) > 3 and node.output[3]:
        u, factor = precision(name).u, abs(float(q.shape[-1] ** -0.5 if scale is None else str(scale)))
        grouped = np.repeat(k, q.shape[1] // k.shape[1], 1)
        load = factor * (np.abs(q) @ np.abs(np.swapaxes(grouped, 2, 3)))
        shown = results[3]
        off = 3 * u * (load + np.where(np.isfinite(shown), np.abs(shown), 0)) + precision(name).smallest
        if asked.get("qk_matmul_output_mode") == 3:
            off = shown * np.expm1(np.minimum(3 * u * (2 + found.peak), 700)) + precision(name).smallest
        record[node.output[3]] = Wanted(shown, off, np.zeros(shown.shape[:-1], bool))
