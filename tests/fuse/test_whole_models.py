"""Care for the model around the blocks: bodies, functions, shared weights, outputs inside a block, names, metadata."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from text_graphs import assert_same, parse, serialised

from export.fuse import FuseResult, Options, fuse
from export.graph.values import graphs

QKV = "float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v"


def held(model: ir.Model, op: str) -> list[ir.Graph | None]:
    """The graph that each node of an operator stands in."""
    return [node.graph for graph in graphs(model) for node in graph if node.op_type == op]


def fused(model: ir.Model, count: int) -> FuseResult:
    """Fuses, and checks what holds of every model: a valid file, the same numbers, nothing more to do."""
    before = serialised(model)
    result = fuse(model)
    assert [row.status for row in result.attentions] == ["fused"] * count
    assert serialised(model) == before
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert_same(model, result.model)
    assert serialised(fuse(result.model).model) == serialised(result.model)
    return result


BODIES = {
    "a branch": (
        f"g ({QKV}, bool c) => (float[B,4,S,8] y)",
        """y = If(c) <
          then_branch = t () => (float[B,4,S,8] a) { s = MatMul(q, k) p = Softmax<axis = -1>(s) a = MatMul(p, v) },
          else_branch = e () => (float[B,4,S,8] b) { b = Neg(q) }>""",
        1,
    ),
    "both branches, under the same names": (
        f"g ({QKV}, float[B,4,T,8] u, bool c) => (float[B,4,S,8] y) <float h = {{0.5}}>",
        """y = If(c) <
          then_branch = t () => (float[B,4,S,8] a) { s = MatMul(q, k) p = Softmax<axis = -1>(s) a = MatMul(p, v) },
          else_branch = e () => (float[B,4,S,8] a) {
            s = MatMul(q, k) w = Mul(s, h) p = Softmax<axis = -1>(w) a = MatMul(p, u) }>""",
        2,
    ),
    "a loop, K, V and the mask around it": (
        f"g ({QKV}, bool[B,1,1,T] m) => (float[B,4,S,8] y) <int64 n = {{3}}, bool yes = {{1}}, float hide = {{-1e9}}>",
        """y = Loop(n, yes, q) <body = b (int64 i, bool go, float[B,4,S,8] x) => (bool on, float[B,4,S,8] z) {
          on = Identity(go) s = MatMul(x, k) w = Where(m, s, hide) p = Softmax<axis = -1>(w) z = MatMul(p, v) }>""",
        1,
    ),
    "a scan": (
        "g (float[3,B,4,S,8] qs, float[B,4,8,T] k, float[B,4,T,8] v) => (float[3,B,4,S,8] y)",
        """y = Scan<num_scan_inputs = 1, body = b (float[B,4,S,8] x) => (float[B,4,S,8] z) {
          s = MatMul(x, k) p = Softmax<axis = -1>(s) z = MatMul(p, v) }>(qs)""",
        1,
    ),
    "a branch in a loop, K transposed outside of both": (
        "g (float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,8] v, bool c) => (float[B,4,S,8] y) "
        "<int64 n = {2}, bool yes = {1}>",
        """kt = Transpose<perm = [0, 1, 3, 2]>(k)
        y = Loop(n, yes, q) <body = b (int64 i, bool go, float[B,4,S,8] x) => (bool on, float[B,4,S,8] z) {
          on = Identity(go)
          z = If(c) <
            then_branch = t () => (float[B,4,S,8] a) { s = MatMul(x, kt) p = Softmax<axis = -1>(s) a = MatMul(p, v) },
            else_branch = e () => (float[B,4,S,8] o) { o = Neg(x) }> }>""",
        1,
    ),
    "a branch after one outside, each of its own": (
        f"g ({QKV}, bool c) => (float[B,4,S,8] y)",
        """s0 = MatMul(q, k) p0 = Softmax<axis = -1>(s0) a0 = MatMul(p0, v)
        y = If(c) <
          then_branch = t () => (float[B,4,S,8] a) { s = MatMul(a0, k) p = Softmax<axis = -1>(s) a = MatMul(p, v) },
          else_branch = e () => (float[B,4,S,8] b) { b = Identity(a0) }>""",
        2,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_attention_in_the_body_of_a_node(name: str) -> None:
    signature, body, count = BODIES[name]
    model = parse(f"{signature} {{ {body} }}")
    result = fused(model, count)
    places = held(result.model, "Attention")
    assert len(places) == count and not held(result.model, "Softmax")
    assert any(place is not result.model.graph for place in places)


def test_a_cache_that_grows_in_a_loop_is_not_as_long_as_before_the_first_round() -> None:
    """Nothing inside says how long the cache is; what enters the loop says it for the first round alone."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1,2,1,4] q, float[1,2,1,4] k0, float[1,2,1,4] v0, int64 n) => (float[1,2,1,4] y, int64[4] size)
    <bool yes = {1}, int64[4] none = {0,0,0,0}> {
      y, ko, vo, size = Loop(n, yes, q, k0, v0, none) <body = b
        (int64 i, bool go, float x, float kk, float vv, int64[4] was)
        => (bool on, float z, float k2, float v2, int64[4] now) {
        on = Identity(go) k2 = Concat<axis = 2>(kk, x) v2 = Concat<axis = 2>(vv, x)
        kt = Transpose<perm = [0, 1, 3, 2]>(k2) s = MatMul(x, kt) p = Softmax<axis = -1>(s) z = MatMul(p, v2)
        now = Shape(kk) }> }"""
    proto = onnx.parser.parse_model(text)
    (loop,) = proto.graph.node
    body = loop.attribute[0].g
    for value in (*body.input, *body.output):
        if value.name in ("x", "kk", "vv", "z", "k2", "v2"):
            value.type.tensor_type.ClearField("shape")
    before = ir.from_proto(proto)
    after = fuse(before).model
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((1, 2, 1, 4)).astype(np.float32) for name in ("q", "k0", "v0")}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for rounds in (1, 4):
        want, have = (
            ort.InferenceSession(ir.to_proto(m).SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
                None, {**feeds, "n": np.asarray(rounds)}
            )
            for m in (before, after)
        )
        np.testing.assert_allclose(have[0], want[0], rtol=1e-5)
        assert list(have[1]) == list(want[1]) == [1, 2, rounds, 4]


FUNCTIONS = """<ir_version: 10, opset_import: ["": 18, "my": 1]>
g (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v, float[B,4,T,8] u) => (float[B,4,S,8] y, float[B,4,S,8] z) {
  n = my.Norm(q)
  y = my.Attend(n, k, v)
  z = my.Attend(q, k, u)
}
<opset_import: ["": OPSET, "my": 1], domain: "my">
Attend (q, k, v) => (y) { s = MatMul(q, k) w = my.Weights(s) y = MatMul(w, v) }
<opset_import: ["": 18], domain: "my">
Weights (s) => (p) { p = WEIGHTS(s) }
<opset_import: ["": 18], domain: "my">
Norm (x) => (y) {
  sq = Mul(x, x) e = Constant<value = int64[1] {-1}>() m = ReduceMean(sq, e) r = Sqrt(m) y = Div(x, r)
}
"""


def functions(opset: int = 18, weights: str = "Softmax<axis = -1>") -> ir.Model:
    proto = onnx.parser.parse_model(FUNCTIONS.replace("OPSET", str(opset)).replace("WEIGHTS", weights))
    return ir.from_proto(proto)


@pytest.mark.parametrize("opset", [17, 18])
def test_attention_in_functions_is_fused_where_it_is_called_and_other_functions_stay(opset: int) -> None:
    result = fused(functions(opset), 2)
    assert [key[:2] for key in result.model.functions] == [("my", "Norm")]
    (norm,) = result.model.functions.values()
    assert norm.opset_imports[""] == result.model.opset_imports[""] == 23


def test_a_function_that_is_in_the_way_is_inlined_after_all() -> None:
    """A product with a constant might be anything, so it stays a function at first; here it is the scale."""
    text = (
        FUNCTIONS.replace("OPSET", "18")
        .replace("WEIGHTS", "Softmax<axis = -1>")
        .replace("w = my.Weights(s)", "t = my.Scaled(s) w = my.Weights(t)")
    )
    text += (
        '<opset_import: ["": 18], domain: "my"> Scaled (s) => (t) { h = Constant<value_float = 0.5>() t = Mul(s, h) }'
    )
    result = fused(ir.from_proto(onnx.parser.parse_model(text)), 2)
    assert not result.model.functions
    assert [row.scale for row in result.attentions] == [0.5, 0.5]


def test_functions_stay_where_nothing_fuses() -> None:
    model = functions(weights="Sigmoid")
    result = fuse(model)
    assert result.attentions == ()
    assert serialised(result.model) == serialised(model)
    assert len(result.model.functions) == 3


def test_a_function_of_a_later_opset_stays_and_says_so() -> None:
    model = functions(21)
    for function in model.functions.values():
        if function.name == "Weights":
            function.opset_imports[""] = 21
    result = fuse(model)
    assert [row.code for row in result.attentions] == ["K903"]
    assert "my::Weights" in result.attentions[0].reason
    assert serialised(result.model) == serialised(model)


def test_blocks_that_share_their_weights() -> None:
    layer = """
      q{n} = MatMul(x{n}, wq) k{n} = MatMul(x{n}, wk) kt{n} = Transpose<perm = [0, 2, 1]>(k{n})
      s{n} = MatMul(q{n}, kt{n}) c{n} = Mul(s{n}, half) m{n} = Add(c{n}, bias) p{n} = Softmax<axis = -1>(m{n})
      a{n} = MatMul(p{n}, x{n}) x{m} = MatMul(a{n}, wq)
    """
    body = "".join(layer.format(n=n, m=n + 1) for n in range(3))
    numbers = ", ".join(str(n % 7 / 7) for n in range(16))
    model = parse(
        f"""g (float[B,S,4] x0, float[S,S] bias) => (float[B,S,4] y)
        <float half = {{0.5}}, float[4,4] wq = {{{numbers}}}, float[4,4] wk = {{{numbers}}}> {{ {body} y = Neg(x3) }}"""
    )
    result = fused(model, 3)
    assert {"wq", "wk"} <= set(result.model.graph.initializers)
    assert result.model.graph.initializers["wq"].const_value is model.graph.initializers["wq"].const_value


OUTPUTS = {
    "K before and after its transpose": ("float[B,4,T,8] k", "float[B,4,8,T] kt"),
    "Q scaled": ("float[B,4,S,8] qs",),
    "the mask": ("float[B,1,S,T] bias",),
    "the attention before and after its transpose": ("float[B,4,S,8] a", "float[B,S,4,8] t"),
    "the weights": ("float[B,4,S,T] p",),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_tensor_inside_a_block_that_is_an_output_stays_one(name: str) -> None:
    wanted = OUTPUTS[name]
    model = parse(
        f"""g (float[B,S,4,8] q0, float[B,T,4,8] k0, float[B,4,T,8] v, bool[B,1,S,T] m)
        => (float[B,S,32] y, {", ".join(wanted)})
        <float c = {{0.35}}, float zero = {{0.0}}, float hide = {{-10000.0}}, int64[3] flat = {{0, 0, 32}}> {{
          q = Transpose<perm = [0, 2, 1, 3]>(q0) qs = Mul(q, c)
          k = Transpose<perm = [0, 2, 1, 3]>(k0) kt = Transpose<perm = [0, 1, 3, 2]>(k)
          bias = Where(m, zero, hide) s = MatMul(qs, kt) w = Add(s, bias) p = Softmax<axis = -1>(w)
          a = MatMul(p, v) t = Transpose<perm = [0, 2, 1, 3]>(a) y = Reshape(t, flat) }}"""
    )
    result = fused(model, 1)
    assert [v.name for v in result.model.graph.outputs] == [v.name for v in model.graph.outputs]


def test_what_the_model_says_about_itself_stays() -> None:
    model = parse(
        f"""g ({QKV}, float[B,4,S,8] other) => (float[B,4,S,8] first, float[B,4,S,8] y, float[B,4,S,8] last)
        <float[8] w = {{1,2,3,4,5,6,7,8}}> {{
          first = Mul(other, w) near = Abs(first)
          s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v)
          last = Add(near, y) }}"""
    )
    proto = ir.to_proto(model)
    proto.producer_name, proto.producer_version, proto.domain = "pytorch", "2.13.0", "org.example"
    proto.model_version, proto.doc_string, proto.graph.doc_string = 7, "a model", "a graph"
    onnx.helper.set_model_props(proto, {"author": "me", "licence": "none"})
    for node in proto.graph.node:
        node.doc_string = f"about {node.output[0]}"
        onnx.helper.set_metadata_props(node, {"line": node.output[0]})
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = f"value {value.name}"
    shown = onnx.helper.make_tensor_value_info("near", 1, ["B", 4, "S", 8])
    shown.doc_string = "kept"
    proto.graph.value_info.append(shown)
    proto.graph.quantization_annotation.append(
        onnx.TensorAnnotation(
            tensor_name="w", quant_parameter_tensor_names=[onnx.StringStringEntryProto(key="SCALE_TENSOR", value="w")]
        )
    )
    onnx.checker.check_model(proto)
    result = fuse(ir.from_proto(proto))
    assert result.summary.fused == 1
    after = ir.to_proto(result.model)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(after, field) == getattr(proto, field), field
    assert list(after.metadata_props) == list(proto.metadata_props)
    assert after.graph.name == proto.graph.name and after.graph.doc_string == "a graph"
    assert list(after.graph.input) == list(proto.graph.input)
    assert list(after.graph.output) == list(proto.graph.output)
    assert list(after.graph.initializer) == list(proto.graph.initializer)
    assert list(after.graph.quantization_annotation) == list(proto.graph.quantization_annotation)
    untouched = {n.name: n for n in proto.graph.node if n.output[0] in ("first", "near", "last")}
    assert {n.name: n for n in after.graph.node if n.name in untouched} == untouched
    (near,) = [v for v in after.graph.value_info if v.name == "near"]
    assert near.doc_string == "kept"
    (attention,) = [n for n in after.graph.node if n.op_type == "Attention"]
    assert {p.key: p.value for p in attention.metadata_props} == {"line": "y"}


def test_a_model_in_which_nothing_fuses_comes_back_as_it_was() -> None:
    model = parse(
        """g (float[B,4,S,8] x) => (float[B,4,S,8] y) <float one = {1.0}> {
        a = Identity(x) t = Transpose<perm = [0, 1, 3, 2]>(a) u = Transpose<perm = [0, 1, 3, 2]>(t)
        b = Add(one, one) y = Mul(u, b) }"""
    )
    result = fuse(model, Options(verify=False))
    assert serialised(result.model) == serialised(model)
