"""Raising the opset: what has an adapter means the same afterwards, what changed its meaning stops the raise."""

import collections
import functools
import itertools
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import defs
from text_graphs import assert_same, check, parse

from export.fuse import fuse
from export.graph import opset
from export.graph.values import Refusal

ATTENTION = """
  s = MatMul(q, k)
  p = Softmax<axis = -1>(s)
  a = MatMul(p, v)
"""


def graph(version: int, extra: str, consts: str = "", *, out: str = "float[B,4,S,8] y", domains: str = ""):
    return parse(
        f"""<ir_version: 8, opset_import: ["": {version}{domains}]>
        g (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v) => ({out}) {consts} {{ {ATTENTION} {extra} }}""",
        deprecated="GroupNormalization" in extra,
    )


@pytest.mark.parametrize("version", range(13, 23))
def test_every_opset_from_13_on_is_raised_to_23(version: int) -> None:
    axes = version < 18  # the reductions took `axes` as an attribute, Split knew its parts from its outputs
    reduced = "\n".join(
        f"r{i} = {op}<axes = [-1], keepdims = 1>(a)" if axes else f"r{i} = {op}<keepdims = 1>(a, last)"
        for i, op in enumerate(sorted(opset._AXES_BECAME_INPUT))
    )
    names = ", ".join(f"r{i}" for i in range(len(opset._AXES_BECAME_INPUT)))
    split = "h0, h1 = Split<axis = 3>(a)" if axes else "h0, h1 = Split<axis = 3, num_outputs = 2>(a)"
    before = graph(
        version,
        f"""{reduced}
        total = ReduceSum<keepdims = 1>(a, last)
        whole = ReduceMean<keepdims = 1>(a)
        wide = Expand(whole, shape)
        {split}
        g0, g1 = Split<axis = 3>(a, parts)
        y = Concat<axis = -1>({names}, total, wide, h1, h0, g1, g0)""",
        "<int64[1] last = {-1}, int64[2] parts = {6, 2}, int64[4] shape = {2, 4, 5, 1}>",
        out="float[B,4,S,W] y",
    )
    result = fuse(before)
    assert [row.status for row in result.attentions] == ["fused"]
    assert result.model.graph.opset_imports[""] == 23
    assert result.model.ir_version == 10
    check(result.model)
    assert_same(before, result.model, [{"B": 2, "S": 5, "T": 7}])


@pytest.mark.parametrize("version", [23, 24])
def test_an_opset_that_has_attention_stays(version: int) -> None:
    result = fuse(graph(version, "y = Neg(a)"))
    assert result.summary.fused == 1
    assert result.model.graph.opset_imports[""] == version


def test_other_domains_keep_their_versions() -> None:
    result = fuse(graph(17, "y = Neg(a)", domains=', "com.microsoft": 1'))
    assert result.model.graph.opset_imports == {"": 23, "com.microsoft": 1}


@pytest.mark.parametrize("version", [11, 12])
def test_below_13_the_reason_is_the_opset(version: int) -> None:
    before = graph(version, "y = Neg(a)")
    result = fuse(before)
    (row,) = result.attentions
    assert (row.status, row.code) == ("kept", "K901")
    assert f"opset {version}" in row.reason
    assert result.model.graph.opset_imports[""] == version


CHANGED = {
    "GridSample": (16, 'y = GridSample<mode = "bilinear">(a, grid)', "float[2,4,3,3] y", "float[2,3,3,2] grid"),
    "DFT": (
        17,
        "u = Unsqueeze(a, last)\n y = DFT<axis = 1>(u, one)",
        "float[B,4,S,8,2] y",
        "int64[1] last = {-1}, int64 one = {4}",
    ),
    "GroupNormalization": (
        18,
        "y = GroupNormalization<num_groups = 2>(a, w, w)",
        "float[B,4,S,8] y",
        "float[2] w = {1.0, 2.0}",
    ),
    "RoiAlign": (
        13,
        "y = RoiAlign(a, roi, at)",
        "float[1,4,1,1] y",
        "float[1,4] roi = {0.0, 0.0, 2.0, 2.0}, int64[1] at = {0}",
    ),
    "BatchNormalization": (
        13,
        "y, m, n, o, r = BatchNormalization(a, c, c, c, c)",
        "float[B,4,S,8] y",
        "float[4] c = {1.0, 2.0, 3.0, 4.0}",
    ),
}
"""Operator: (an opset before the change, nodes, the output, constants)."""


def changed(op: str, version: int | None = None, old: str = "", new: str = ""):
    first, nodes, out, consts = CHANGED[op]
    grid = "float[2,3,3,2] grid"
    filled = consts.replace(grid, grid + " = {" + ",".join(["0.1"] * 36) + "}")
    return graph(version or first, nodes.replace(old, new), f"<{filled}>", out=out)


@pytest.mark.parametrize("op", CHANGED)
def test_an_operator_that_changed_its_meaning_stops_the_raise(op: str) -> None:
    version = CHANGED[op][0]
    result = fuse(changed(op))
    (row,) = result.attentions
    assert (row.status, row.code) == ("kept", "K902")
    assert op in row.reason and f"opset {version}" in row.reason
    assert result.model.graph.opset_imports[""] == version


def test_an_operator_that_changed_its_meaning_earlier_does_not() -> None:
    before = changed("GridSample", 20, "bilinear", "linear")
    result = fuse(before)
    assert result.summary.fused == 1
    assert_same(before, result.model, [{"B": 2, "S": 5, "T": 7}])


def test_normalisation_at_inference_is_raised() -> None:
    before = changed("BatchNormalization", old="y, m, n, o, r =", new="y =")
    result = fuse(before)
    assert result.summary.fused == 1
    assert_same(before, result.model, [{"B": 2, "S": 5, "T": 7}])


WITHOUT_KERNEL = {
    "Bernoulli": "y = Bernoulli(a)",
    "GlobalLpPool": "y = GlobalLpPool(a)",
    "MaxRoiPool": "y = MaxRoiPool<pooled_shape = [1, 1]>(a, rois)",
    "Multinomial": "r = Reshape(a, flat) y = Multinomial(r)",
    "RandomNormal": "y = RandomNormal<shape = [2]>()",
    "RandomNormalLike": "y = RandomNormalLike(a)",
    "RandomUniform": "y = RandomUniform<shape = [2]>()",
    "RandomUniformLike": "y = RandomUniformLike(a)",
    "RoiAlign": "y = RoiAlign(a, boxes, at)",
}


def test_an_operator_without_a_kernel_stops_the_raise() -> None:
    """Each is tried on the runtime: one that a later version knows must be taken off the list."""
    assert set(WITHOUT_KERNEL) == opset._WITHOUT_KERNEL
    boxes = "float[1,5] rois = {0, 0, 0, 2, 2}, float[1,4] boxes = {0, 0, 2, 2}"
    consts = f"<{boxes}, int64[1] at = {{0}}, int64[2] flat = {{0, -1}}>"
    for op, nodes in WITHOUT_KERNEL.items():
        out = "int32[R,C] y" if op == "Multinomial" else "float y"
        before = graph(21, nodes, consts, out=f"{out}, float[B,4,S,8] a")
        if op != "Multinomial":
            before.graph.outputs[0].shape = None
        result = fuse(before)
        (row,) = result.attentions
        assert (row.status, row.code) == ("kept", "K904"), op
        assert op in row.reason
        session = {}
        for version in (21, 23):
            proto = ir.to_proto(before)
            proto.opset_import[0].version, proto.ir_version = version, 10
            options = ort.SessionOptions()
            options.log_severity_level = 4
            try:
                session[version] = ort.InferenceSession(
                    proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except ort.capi.onnxruntime_pybind11_state.NotImplemented:
                session[version] = None
        assert session[21] is not None, op
        assert session[23] is None, f"ONNX Runtime has {op} now"


@pytest.mark.slow
def test_every_operator_that_changed_means_the_same_when_it_is_raised() -> None:
    """ONNX's own cases, each written at every opset from 13 on that takes it, run before and after the raise."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow on purpose
        cases = load_model_tests(kind="node")
    ran = collections.Counter[str]()
    for case in cases:
        model = case.model
        if model is None or len(model.graph.node) != 1 or any(o.domain for o in model.opset_import):
            continue
        for version in _versions(model.graph.node[0].op_type):
            same = _same_when_raised(model, version, case.data_sets[0][0])
            assert same is not False, (case.name, version)
            ran[model.graph.node[0].op_type] += same is True
    assert len(+ran) >= 75 and ran.total() >= 500, (len(+ran), ran.total())


@functools.cache
def _versions(op: str) -> list[int]:
    """The opsets from 13 on where an operator's definition that is not 23's begins."""
    history = sorted({s.since_version for s in defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", op)})
    steps = [v for v in history if v <= 13][-1:] + [v for v in history if 13 < v <= 23]
    return [max(v, 13) for v in steps[:-1]]


def _same_when_raised(model: onnx.ModelProto, version: int, inputs: list) -> bool | None:
    """Whether the results are equal; None where the older opset does not take the case, or the raise is refused."""
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version, old.ir_version = version, min(old.ir_version, 10)
    feeds = dict(zip([i.name for i in model.graph.input], inputs, strict=True))
    try:
        onnx.checker.check_model(old)
        before = _run(old, feeds)
    except Exception:
        return None
    raised = ir.from_proto(old)
    try:
        opset.raise_opset(raised)
    except Refusal:
        return None
    after = _run(ir.to_proto(raised), feeds)
    return all(_equal(a, b) for a, b in zip(before, after, strict=True))


def _run(model: onnx.ModelProto, feeds: dict) -> list:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    if a is None or b is None:
        return a is b
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind in "fc":  # AveragePool's older kernel rounds its last bit otherwise
        return x.dtype == y.dtype and bool(np.allclose(x, y, rtol=3e-7, atol=1e-7, equal_nan=True))
    return x.dtype == y.dtype and bool(np.array_equal(x, y))


def test_every_operator_whose_form_changed_since_13_is_known() -> None:
    """Read from ONNX's own schemas: an attribute that went or has another default, other outputs, deprecation."""
    known = opset._AXES_BECAME_INPUT | set(opset._CHANGED)
    names = {schema.name for schema in defs.get_all_schemas_with_history() if schema.domain == ""}
    changed = {name for name in names if _form_changed(name)}
    assert changed <= known, changed - known
    assert changed >= opset._AXES_BECAME_INPUT


def _form_changed(name: str) -> bool:
    history = sorted(
        {s.since_version for s in defs.get_all_schemas_with_history() if s.domain == "" and s.name == name}
    )
    steps = [v for v in history if v <= 13][-1:] + [v for v in history if 13 < v <= 23]
    for first, second in itertools.pairwise(steps):
        old, new = defs.get_schema(name, first, ""), defs.get_schema(name, second, "")
        defaults = [{n: _default(a) for n, a in schema.attributes.items()} for schema in (old, new)]
        if any(n not in defaults[1] or defaults[1][n] != value for n, value in defaults[0].items()):
            return True
        if len(old.outputs) != len(new.outputs) or old.deprecated != new.deprecated:
            return True
    return False


def _default(attribute: defs.OpSchema.Attribute) -> object:
    given = attribute.default_value
    return onnx.helper.get_attribute_value(given) if given.name else None
