"""Stages that models have, put together at random: what comes out is fused or refused, and never wrong."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from text_graphs import assert_same, check

from export.fuse import Options, fuse

HEADS, SIZE = 2, 4
MASKS = {
    "bhst": ["B", HEADS, "S", "T"],
    "b1st": ["B", 1, "S", "T"],
    "st": ["S", "T"],
    "b11t": ["B", 1, 1, "T"],
    "h11": [HEADS, 1, 1],
    "s1": ["S", 1],
}
FILLS = (-np.inf, -1e9, -3.4028235e38, -1e4, -5.0, 0.0)
SIZES = ({"B": 2, "S": 5, "T": 7}, {"B": 1, "S": 1, "T": 3}, {"B": 3, "S": 4, "T": 4})


@dataclass
class Draft:
    """A graph while it is written: the current scores or weights, and the inputs they made necessary."""

    inputs: dict[str, tuple[int, list]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def take(self, name: str, shape: list, kind: int = TensorProto.FLOAT) -> str:
        self.inputs[name] = (kind, shape)
        return name

    def number(self, value, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op: str, *inputs: str, **attributes) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{name}", **attributes))
        return name

    def model(self, result: str) -> ir.Model:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [result], ["y"], name="last")],
            "random",
            [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in self.inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", HEADS, "S", SIZE])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return ir.from_proto(model)


def stage(draft: Draft, scores: str, kind: str, data: st.DataObject) -> str:
    """Writes one stage between QK^T and Softmax."""
    at = len(draft.nodes)
    if kind in ("times", "over"):
        number = draft.number(data.draw(st.sampled_from({"times": [0.25, 0.5, -1.0], "over": [2.0, 3.0]}[kind])))
        pair = (scores, number) if kind == "over" or data.draw(st.booleans()) else (number, scores)
        return draft.add("Mul" if kind == "times" else "Div", *pair)
    if kind in ("plus", "minus", "times a tensor"):
        shape = MASKS[data.draw(st.sampled_from(sorted(MASKS)))]
        pair = [scores, draft.take(f"f{at}", shape)]
        if data.draw(st.booleans()):
            pair.reverse()
        return draft.add({"plus": "Add", "minus": "Sub", "times a tensor": "Mul"}[kind], *pair)
    if kind == "where":
        shape = MASKS[data.draw(st.sampled_from(["bhst", "b1st", "st", "b11t"]))]
        keep = draft.take(data.draw(st.sampled_from([f"m{at}", "m"])), shape, TensorProto.BOOL)
        if draft.inputs[keep][1] != shape:
            keep = draft.take(f"m{at}", shape, TensorProto.BOOL)
        fill = draft.number(data.draw(st.sampled_from(FILLS)))
        return draft.add("Where", keep, *data.draw(st.permutations([scores, fill])))
    if kind == "softcap":
        cap = draft.number(5.0)
        return draft.add("Mul", draft.add("Tanh", draft.add("Div", scores, cap)), cap)
    if kind == "cast":
        return draft.add("Cast", draft.add("Cast", scores, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    if kind == "turned twice":
        perm = data.draw(st.sampled_from([(0, 1, 3, 2), (0, 2, 1, 3), (1, 0, 2, 3)]))
        return draft.add("Transpose", draft.add("Transpose", scores, perm=perm), perm=perm)
    if kind == "merged and split":
        rows = draft.add("Shape", scores)
        keys = draft.add("Shape", scores, start=3)
        merged = draft.add(
            "Concat", draft.number([-1], np.int64), draft.add("Shape", scores, start=2, end=3), keys, axis=0
        )
        return draft.add("Reshape", draft.add("Reshape", scores, merged), rows)
    return draft.add({"negated": "Neg", "same": "Identity", "clamped": "Relu"}[kind], scores)


STAGES = [
    "times", "over", "plus", "minus", "where", "where", "softcap", "cast", "turned twice", "merged and split",
    "negated", "same", "clamped", "times a tensor",
]  # fmt: skip
AFTER = ["same", "dropout", "not a number", "zeroed", "halved"]


def after(draft: Draft, weights: str, kind: str, data: st.DataObject) -> str:
    """Writes one step between Softmax and V."""
    zero = draft.number(0.0)
    if kind == "not a number":
        return draft.add("Where", draft.add("IsNaN", weights), zero, weights)
    if kind == "zeroed":
        known = [n for n, (element, _) in draft.inputs.items() if element == TensorProto.BOOL]
        keep = data.draw(st.sampled_from(known)) if known else draft.take("z", MASKS["st"], TensorProto.BOOL)
        return draft.add("Where", keep, *data.draw(st.permutations([weights, zero])))
    if kind == "halved":
        return draft.add("Mul", weights, draft.number(0.5))
    return draft.add({"same": "Identity", "dropout": "Dropout"}[kind], weights)


def graph(data: st.DataObject) -> ir.Model:
    draft = Draft()
    kv_heads = data.draw(st.sampled_from([HEADS, HEADS, 1]))
    q = draft.take("q", ["B", HEADS, "S", SIZE])
    v = draft.take("v", ["B", kv_heads, "T", SIZE])
    if data.draw(st.booleans()):
        k = draft.take("k", ["B", kv_heads, SIZE, "T"])
    else:
        k = draft.add("Transpose", draft.take("k", ["B", kv_heads, "T", SIZE]), perm=(0, 1, 3, 2))
    for name in data.draw(st.sets(st.sampled_from("qk"))):
        scaled = draft.add("Mul", q if name == "q" else k, draft.number(0.7))
        q, k = (scaled, k) if name == "q" else (q, scaled)
    scores = draft.add("MatMul", q, k)
    for kind in data.draw(st.lists(st.sampled_from(STAGES), max_size=5)):
        scores = stage(draft, scores, kind, data)
    weights = draft.add("Softmax", scores, axis=-1)
    for kind in data.draw(st.lists(st.sampled_from(AFTER), max_size=2)):
        weights = after(draft, weights, kind, data)
    return draft.model(draft.add("MatMul", weights, v))


def initializers(model: ir.Model) -> list[ir.Value]:
    return list(model.graph.initializers.values())


SEEN: Counter[str] = Counter()


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def fused_or_refused_never_wrong(data: st.DataObject) -> None:
    model = graph(data)
    result = fuse(model)
    (row,) = result.attentions
    SEEN[row.code] += 1
    read = fuse(model, Options(verify=False))
    # at -1e4 the bias beside it is rounded to 1e-3, and a division to another neighbour than the factor it becomes
    shallow = any(c.const_value is not None and c.const_value.numpy().min() == -1e4 for c in initializers(model))
    tolerance = 1e-3 if shallow else 2e-5
    if row.status == "fused":
        check(result.model)
        assert_same(model, result.model, SIZES, tolerance)
    else:
        assert row.status == "kept" and row.code[0] in "KV"
    if read.summary.fused:  # reading alone is right too: verification is a net that should stay empty
        assert_same(model, read.model, SIZES, tolerance)


def test_fused_or_refused_never_wrong() -> None:
    SEEN.clear()
    fused_or_refused_never_wrong()
    assert SEEN["F001"] >= 15, SEEN
    assert len(SEEN) >= 5, SEEN  # and near misses for several reasons
