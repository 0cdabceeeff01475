"""An ONNX file in fp32 becomes fp16 or bf16: what narrows, what stays, and that it computes the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from engines.ort_runner import OrtRunner
from export import build, cli, model_file, onnx_subject
from export.errors import UsageError
from export.fuse import Options, fuse
from export.lower import for_ort_check
from export.precision.convert import Converted, convert

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
RNG = np.random.default_rng(0)

# A norm by hand, a rotation by a table made from positions, an attention with a mask of finfo.min.
BLOCK = """
<ir_version: 10, opset_import: ["": 18]>
block (float[batch, length, 16] x, int64[batch, length] mask) => (float[batch, length, 16] y)
<float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[1, 8, 1] freqs> {
  two = Constant<value = float {2.0}>()
  eps = Constant<value = float {1e-12}>()
  scale = Constant<value = float {0.25}>()
  one = Constant<value = float {1.0}>()
  lowest = Constant<value = float {-3.4e38}>()
  zero64 = Constant<value = int64 {0}>()
  one64 = Constant<value = int64 {1}>()
  last = Constant<value = int64[1] {-1}>()
  middle = Constant<value = int64[2] {1, 2}>()
  first = Constant<value = int64[2] {0, 1}>()
  half = Constant<value = int64[1] {8}>()
  start = Constant<value = int64[1] {0}>()
  end = Constant<value = int64[1] {16}>()
  [square] x2 = Pow(x, two)
  [mean] m = ReduceMean(x2, last)
  m1 = Add(m, eps)
  [root] r = Sqrt(m1)
  [norm] n = Div(x, r)
  [q] q = MatMul(n, wq)
  [k] k = MatMul(n, wk)
  [v] v = MatMul(n, wv)
  sizes = Shape<start = 1, end = 2>(x)
  size = Squeeze(sizes)
  positions = Range(zero64, size, one64)
  [positions] floats = Cast<to = 1>(positions)
  row = Unsqueeze(floats, first)
  [angles] angles = MatMul(freqs, row)
  turned = Transpose<perm = [0, 2, 1]>(angles)
  both = Concat<axis = -1>(turned, turned)
  [cos] cos = Cos(both)
  [sin] sin = Sin(both)
  [qc] qc = Mul(q, cos)
  q1 = Slice(q, start, half, last)
  q2 = Slice(q, half, end, last)
  qn = Neg(q2)
  qr = Concat<axis = -1>(qn, q1)
  [qs] qs = Mul(qr, sin)
  [rotated] qt = Add(qc, qs)
  kt = Transpose<perm = [0, 2, 1]>(k)
  [scores] s = MatMul(qt, kt)
  [scaled] s1 = Mul(s, scale)
  keep = Cast<to = 1>(mask)
  hide = Sub(one, keep)
  fill = Mul(hide, lowest)
  bias = Unsqueeze(fill, one64)
  [masked] s2 = Add(s1, bias)
  [softmax] p = Softmax<axis = -1>(s2)
  [pv] y = MatMul(p, v)
}
"""


def block() -> ir.Model:
    proto = onnx.parser.parse_model(BLOCK)
    weights = {name: RNG.standard_normal((16, 16)).astype("f4") / 4 for name in ("wq", "wk", "wv")}
    weights["freqs"] = (10000.0 ** (-np.arange(8) / 8)).astype("f4").reshape(1, 8, 1)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return ir.from_proto(proto)


def checked(model: ir.Model, dtype: str = "fp16") -> Converted:
    converted = convert(model, dtype)
    onnx.checker.check_model(ir.to_proto(converted.model), full_check=True)
    return converted


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {node.name: node.outputs[0].dtype for node in model.graph if node.name}


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    runner = OrtRunner(ir.to_proto(for_ort_check(model)).SerializeToString(), optimization="disable")
    return next(iter(runner.run(feeds).values()))


@pytest.mark.parametrize(("dtype", "half"), [("fp16", HALF), ("bf16", ir.DataType.BFLOAT16)])
def test_products_narrow_and_norms_angles_and_softmaxes_stay(dtype: str, half: ir.DataType) -> None:
    before = block()
    converted = checked(before, dtype)
    found = types(converted.model)
    wide = ("square", "mean", "root", "norm", "positions", "angles", "cos", "sin", "masked", "softmax")
    assert {name: found[name] for name in wide} == dict.fromkeys(wide, FLOAT)
    narrow = ("q", "k", "v", "qc", "qs", "rotated", "scores", "pv")
    assert {name: found[name] for name in narrow} == dict.fromkeys(narrow, half)
    scores = next(node for node in converted.model.graph if node.name == "scores")
    assert {v.dtype for v in scores.inputs} == {half}, "cast back before the product of queries and keys"
    assert [v.dtype for v in converted.model.graph.inputs] == [half, ir.DataType.INT64]
    assert converted.model.graph.outputs[0].dtype == half
    assert converted.model.graph.outputs[0].name == "y"
    held = {n: v.dtype for n, v in converted.model.graph.initializers.items()}
    assert held == {"wq": half, "wk": half, "wv": half, "freqs": FLOAT}
    assert types(before)["q"] is None, "the model itself is not changed"


def test_a_mask_that_half_precision_cannot_hold_hides_and_a_row_of_it_keeps_its_meaning() -> None:
    model = block()
    converted = checked(model).model
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    feeds = {"x": RNG.standard_normal((2, 5, 16)).astype("f2"), "mask": mask}
    got = run(converted, feeds)
    want = run(model, {**feeds, "x": feeds["x"].astype("f4")})
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() < 32 * np.finfo(np.float16).eps
    assert not any(np.isinf(v.const_value.numpy()).any() for v in converted.graph.initializers.values())


def test_the_converted_attention_is_fused_in_half_precision() -> None:
    fused = fuse(checked(block()).model, Options(verify=True))
    (node,) = [node for node in fused.model.graph if node.op_type == "Attention"]
    assert {v.dtype for v in node.inputs[:3]} == {HALF}


def test_angles_are_exact_at_far_positions() -> None:
    converted = checked(block()).model
    table = next(node for node in converted.graph if node.name == "cos").outputs[0]
    converted.graph.outputs.append(table)
    feeds = {"x": np.zeros((1, 4001, 16), "f2"), "mask": np.ones((1, 4001), np.int64)}
    runner = OrtRunner(ir.to_proto(converted).SerializeToString(), optimization="disable")
    cosines = list(runner.run(feeds).values())[1]
    want = np.cos(np.arange(4001)[:, None] * np.tile(10000.0 ** (-np.arange(8) / 8), 2))
    assert np.abs(cosines[0] - want).max() < 1e-3, "in half precision it would be wrong by more than 1"


def test_an_input_that_makes_angles_only_stays_float32() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[b, 1] t, float[b, 4] x) => (float[b, 4] y)
    <float[1, 4] f = {1.0, 0.1, 0.01, 0.001}> { a = Mul(t, f) c = Cos(a) y = Mul(c, x) }"""
    converted = checked(ir.from_onnx_text(text)).model
    assert [v.dtype for v in converted.graph.inputs] == [FLOAT, HALF]
    assert converted.graph.outputs[0].dtype == HALF


@pytest.mark.parametrize("constant", ["1e9", "1e-9"])
def test_a_constant_that_half_precision_cannot_hold_keeps_its_step_in_float32(constant: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 18]> g (float[b, 4] x) => (float[b, 4] y)
    {{ c = Constant<value = float {{{constant}}}>() [far] m = Mul(x, c) [back] y = Div(m, c) }}"""
    converted = checked(ir.from_onnx_text(text)).model
    assert types(converted)["far"] == FLOAT
    x = RNG.standard_normal((2, 4)).astype("f2")
    assert (run(converted, {"x": x}) == x).all()


def test_bodies_of_control_flow_stay_float32() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (bool c, float[b, 4] x) => (float[b, 4] y)
    <float[4, 4] w = {1.,0.,0.,0., 0.,2.,0.,0., 0.,0.,3.,0., 0.,0.,0.,4.}> {
      h = MatMul(x, w)
      y = If(c) <then_branch = t () => (float[b, 4] u) { u = Add(h, x) },
                 else_branch = e () => (float[b, 4] z) { z = MatMul(h, w) }>
    }"""
    model = ir.from_onnx_text(text)
    converted = checked(model).model
    for c in (True, False):
        feeds = {"c": np.asarray(c), "x": np.arange(8, dtype="f2").reshape(2, 4)}
        want = run(model, {**feeds, "x": feeds["x"].astype("f4")})
        got = run(converted, feeds)
        assert got.dtype == np.float16
        assert (got == want).all()


def test_a_weight_beyond_the_range_is_named_and_bf16_holds_it() -> None:
    model = block()
    model.graph.initializers["wk"].const_value = ir.Tensor(np.full((16, 16), 7e4, "f4"), name="wk")
    with pytest.raises(UsageError, match=r"The weight 'wk' reaches 70000, beyond fp16's largest number 65504"):
        convert(model, "fp16")
    assert checked(model, "bf16").model.graph.initializers["wk"].dtype == ir.DataType.BFLOAT16


def test_weights_in_external_data_are_converted_when_they_are_written(tmp_path: Path) -> None:
    model = block()
    model_file.save(model, tmp_path / "a.onnx", inline_limit=0)
    assert (tmp_path / "a.onnx.data").exists()
    converted = checked(model_file.load(tmp_path / "a.onnx"))
    model_file.save(converted.model, tmp_path / "b.onnx", inline_limit=0)
    written = model_file.load(tmp_path / "b.onnx").graph.initializers["wq"].const_value
    want = model.graph.initializers["wq"].const_value
    assert written is not None
    assert want is not None
    assert (written.numpy() == want.numpy().astype("f2")).all()


def test_build_converts_a_file_and_judges_it_by_what_it_was(tmp_path: Path, monkeypatch, capsys) -> None:
    path = small_models.save(small_models.attention("float32"), tmp_path / "net.onnx")
    words = ["build", str(path), "-o", str(tmp_path / "o"), "--target", "ort", "--dtype", "fp16"]
    words += ["--shapes", "batch=1:2:3,length=1:6:9"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "net.onnx itself in float64 on ONNX Runtime, weights rounded to fp16 first" in text
    assert "note: The file computes in fp32 and was converted to fp16, its inputs and outputs too;" in text
    assert onnx_subject.dtype_of(model_file.load(tmp_path / "o" / "model.onnx")) == "fp16"
    assert cli.main(["check", str(tmp_path / "o")]) == 0

    def wrong(model: ir.Model, dtype: str) -> Converted:
        converted = convert(model, dtype)
        scale = converted.model.graph.initializers["scale"]
        scale.const_value = ir.Tensor(scale.const_value.numpy() * np.float16(1.05), name="scale")
        return replace(converted)

    monkeypatch.setattr(onnx_subject, "convert", wrong)
    assert cli.main([*words, "--force"]) == 1
    assert "failed: exported, case" in capsys.readouterr().out


def test_bf16_is_judged_widened(tmp_path: Path) -> None:
    path = small_models.save(small_models.attention("float32"), tmp_path / "net.onnx")
    shapes = {"batch": (1, 2, 3), "length": (1, 6, 9)}
    report = build(str(path), out=str(tmp_path / "o"), target="ort", dtype="bf16", shapes=shapes)
    assert report.passed
    seen = {row.stage: row.status for row in report.parity.rows}
    assert seen == {"exported-widened": "ok", "exported": "not run", "fused": "not run", "lowered": "not run"}


def test_only_fp32_is_converted(tmp_path: Path, capsys) -> None:
    path = small_models.save(small_models.attention("float16"), tmp_path / "net.onnx")
    assert cli.main(["build", str(path), "-o", str(tmp_path / "o"), "--target", "ort", "--dtype", "bf16"]) == 2
    assert (
        "computes in fp16, and --dtype bf16 was asked for. Only a file in fp32 is converted" in capsys.readouterr().err
    )
