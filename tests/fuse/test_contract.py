"""What `fuse` promises: the report's names, an untouched input, kept names, one result however often it is run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from text_graphs import assert_same, parse, read_goldens, serialised

from export.fuse import Options, as_json, fuse

FOLDER = Path(__file__).parent / "goldens"
FUSED = [
    pytest.param(golden, id=f"{file.stem}: {golden.name}")
    for file in sorted(FOLDER.glob("*.txt"))
    if file.stem != "laws"
    for golden in read_goldens(file.read_text())
    if "kept" not in golden.after and golden.after != "nothing"
]

TWO = """
g (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v, bool[B,1,S,T] m) => (float[B,4,S,8] y, float[B,4,S,8] z)
<float c = {0.25}, float hide = {-inf}> {
  s = MatMul(q, k)
  scaled = Mul(s, c)
  masked = Where(m, scaled, hide)
  p = Softmax<axis = -1>(masked)
  y = MatMul(p, v)
  r = MatMul(q, k)
  n = Softmax<axis = 2>(r)
  z = MatMul(n, v)
}"""


@pytest.mark.parametrize("golden", FUSED)
def test_the_input_stays_and_a_second_run_changes_nothing(golden) -> None:
    model = parse(golden.before)
    before = serialised(model)
    once = fuse(model, Options(verify=False))
    assert serialised(model) == before
    twice = fuse(once.model, Options(verify=False))
    assert serialised(twice.model) == serialised(once.model)
    assert twice.summary.fused == 0
    assert twice.summary.already == once.summary.fused


def test_a_second_run_keeps_what_the_first_kept() -> None:
    once = fuse(parse(TWO))
    twice = fuse(once.model)
    assert [(row.name, row.status) for row in twice.attentions] == [
        ("Softmax_p/Attention", "already"),
        ("Softmax_n", "kept"),
    ]
    assert twice.attentions[1] == once.attentions[1]
    assert serialised(twice.model) == serialised(once.model)


def test_the_report_has_the_contract_names_and_types() -> None:
    report = json.loads(json.dumps(as_json(fuse(parse(TWO)).attentions)))
    assert list(report) == ["schema", "attentions", "summary", "rotations"]
    assert report["schema"] == 1
    assert report["summary"] == {"found": 2, "fused": 1, "kept": 1, "already": 0}
    fused, kept = report["attentions"]
    names = [
        "name", "status", "code", "reason", "op", "heads", "kv_heads", "head_size", "scale", "softcap", "mask", "rope",
        "source", "verify",
    ]  # fmt: skip
    assert [n for n in fused if n in names] == names == [n for n in kept if n in names]
    assert set(fused) - set(names) <= {"masked_rows", "cache", "change", "trail", "block"}
    assert set(fused["verify"]) == {"max_error", "budget", "cases"}
    assert 0 <= fused["verify"]["max_error"] <= fused["verify"]["budget"] < 1e-2
    del fused["verify"]
    assert {n: fused[n] for n in names if n in fused} == {
        "name": "Softmax_p/Attention",
        "status": "fused",
        "code": "F001",
        "reason": "Softmax attention became one op; a row without keys gives zero (NaN before).",
        "op": "ai.onnx::Attention",
        "heads": 4,
        "kv_heads": 4,
        "head_size": 8,
        "scale": 0.25,
        "softcap": None,
        "mask": "bool",
        "rope": "none",
        "source": None,
    }
    assert {n: kept[n] for n in names} == {
        "name": "Softmax_n",
        "status": "kept",
        "code": "K203",
        "reason": "Softmax 'Softmax_n' normalises over axes that are not the keys of MatMul 'MatMul_z'.",
        "op": "Softmax",
        "heads": None,
        "kv_heads": None,
        "head_size": None,
        "scale": None,
        "softcap": None,
        "mask": "none",
        "rope": "none",
        "source": None,
        "verify": None,
    }


def test_what_was_not_verified_says_so() -> None:
    (fused, _) = fuse(parse(TWO), Options(verify=False)).attentions
    assert fused.status == "fused" and fused.verify is None


def test_options_and_rows_are_values() -> None:
    for value in (Options(), fuse(parse(TWO), Options(verify=False)).attentions[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)


def test_names_metadata_and_outputs_stay() -> None:
    model = parse(TWO)
    model.producer_name, model.producer_version, model.domain = "exporter", "1.2", "org.example"
    model.model_version, model.doc_string = 7, "A model."
    model.metadata_props["tokenizer"] = "x"
    model.graph.doc_string = "A graph."
    model.graph.metadata_props["part"] = "encoder"
    model.graph.inputs[0].metadata_props["what"] = "query"
    model.graph.outputs[0].doc_string = "The result."
    after = ir.from_proto(ir.to_proto(fuse(model).model))
    assert (after.producer_name, after.producer_version, after.domain) == ("exporter", "1.2", "org.example")
    assert (after.model_version, after.doc_string) == (7, "A model.")
    assert dict(after.metadata_props) == {"tokenizer": "x"}
    assert (after.graph.name, after.graph.doc_string) == ("g", "A graph.")
    assert dict(after.graph.metadata_props) == {"part": "encoder"}
    for before, value in zip((*model.graph.inputs, *model.graph.outputs),
                             (*after.graph.inputs, *after.graph.outputs), strict=True):  # fmt: skip
        assert (value.name, value.dtype, str(value.shape)) == (before.name, before.dtype, str(before.shape))
    assert after.graph.inputs[0].metadata_props["what"] == "query"
    assert after.graph.outputs[0].doc_string == "The result."
    kept = {node.name: node for node in after.graph}["Softmax_n"]
    assert (kept.inputs[0].name, kept.outputs[0].name) == ("r", "n")


def test_weights_are_the_same_tensors() -> None:
    text = TWO.replace("s = MatMul(q, k)", "qw = MatMul(q, w)\n  s = MatMul(qw, k)")
    model = parse(text.replace("bool[B,1,S,T] m)", "bool[B,1,S,T] m, float[8,8] w)"))
    weight = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([8, 8]))
    weight.const_value = ir.tensor(np.ones((8, 8), np.float32), name="w")
    model.graph.inputs[-1].replace_all_uses_with(weight)
    model.graph.inputs.pop()
    model.graph.register_initializer(weight)
    after = fuse(model).model.graph.initializers["w"]
    assert after.const_value is weight.const_value


def test_nothing_fused_gives_the_model_back() -> None:
    text = TWO.replace("p = Softmax<axis = -1>", "p = Softmax<axis = 1>")
    model = parse(text.replace("s = MatMul(q, k)", "s0 = MatMul(q, k)\n  s = Identity(s0)"))
    result = fuse(model)
    assert result.summary.kept == 2
    assert serialised(result.model) == serialised(model)
    assert result.model is not model


def test_a_graph_without_attention_has_no_rows() -> None:
    model = parse("g (float[B] x) => (float[B] y) { y = Relu(x) }")
    result = fuse(model)
    assert result.attentions == () and as_json(result.attentions)["summary"]["found"] == 0
    assert serialised(result.model) == serialised(model)


TRACE = """File "/site-packages/torch/nn/modules/module.py", line 1775, in _wrapped_call_impl
    return self._call_impl(*args, **kwargs)
  File "/home/me/model.py", line 31, in forward
    return self.attend(q, k, v)
  File "/home/me/model.py", line 12, in attend
    p = torch.softmax(scores, dim=-1)
  File "/site-packages/torch/nn/functional.py", line 2137, in softmax
    ret = input.softmax(dim)"""


def test_the_source_line_is_the_users_innermost() -> None:
    model = parse(TWO)
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = TRACE
    fused, kept = fuse(model).attentions
    line = "/home/me/model.py:12 in attend: p = torch.softmax(scores, dim=-1)"
    assert (fused.source, kept.source) == (line, line)


@pytest.mark.parametrize(
    ("op", "domain", "attributes", "heads", "scale"),
    [
        ("Attention", "", {}, 4, 8**-0.5),
        ("Attention", "", {"scale": 0.5, "is_causal": 1}, 4, 0.5),
        ("MultiHeadAttention", "com.microsoft", {"num_heads": 4}, 4, None),
        ("GroupQueryAttention", "com.microsoft", {"num_heads": 4, "kv_num_heads": 2}, 4, None),
    ],
)
def test_one_op_on_arrival_is_already(op: str, domain: str, attributes: dict, heads: int, scale: float | None) -> None:
    rank3 = bool(domain)
    model = parse(
        """<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
        g (float[B,4,S,8] q, float[B,4,S,8] k, float[B,4,S,8] v) => (float[B,4,S,8] y) { y = Attention(q, k, v) }"""
    )
    node = model.graph.node(0)
    node.op_type, node.domain = op, domain
    for attr in ir.convenience.convert_attributes(attributes):
        node.attributes.add(attr)
    if rank3:
        for value in model.graph.inputs:
            value.shape = ir.Shape(["B", "S", 32])
    result = fuse(model)
    (row,) = result.attentions
    assert (row.status, row.code, row.heads) == ("already", "A001", heads)
    assert row.scale == scale or row.scale == pytest.approx(scale)
    assert row.op == f"{domain or 'ai.onnx'}::{op}"
    assert row.mask == ("causal" if "is_causal" in attributes else "none")
    assert row.kv_heads == attributes.get("kv_num_heads", 4)
    assert serialised(result.model) == serialised(model)


def test_unnamed_and_twice_named_softmaxes_are_told_apart() -> None:
    for name, verify in (("", True), ("same", False)):  # ONNX Runtime refuses a graph that gives a name twice
        model = parse(TWO.replace("Softmax<axis = 2>", "Softmax<axis = -1>"))
        for node in model.graph:
            node.name = name
        result = fuse(model, Options(verify=verify))
        assert [row.status for row in result.attentions] == ["fused", "fused"]
        assert len({row.name for row in result.attentions}) == 2
        if verify:
            assert_same(model, result.model)
