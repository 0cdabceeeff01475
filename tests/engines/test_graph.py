"""The facts of an ONNX file that a build needs, read without its weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_models import BF16, BOOL, F16, F32, attention, model, qkv, spelled_out, value, weight
from onnx import helper

from engines import dimension, graph
from engines.graph import ForeignNode, Graph


def read(onnx_model: onnx.ModelProto, folder: Path) -> Graph:
    onnx.save(onnx_model, folder / "m.onnx")
    return graph.read(folder / "m.onnx")


def test_inputs_are_those_that_are_fed(tmp_path: Path) -> None:
    inputs = [value("x", F16, "B", 4), value("w", F32, 4)]
    inputs[0].type.tensor_type.shape.dim[0].Clear()
    node = helper.make_node("Cast", ["x"], ["y"], to=BF16, name="c")
    found = read(model([node], inputs, [value("y", BF16, "B", 4)], [weight("w", np.ones(4, np.float32))]), tmp_path)
    assert [str(spec) for spec in found.inputs] == ["x float16[x.0, 4]"]
    assert [str(spec) for spec in found.outputs] == ["y bfloat16[B, 4]"]
    assert found.dtypes == {"float16", "float32", "bfloat16"}


def test_weights_stay_unread(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    mm = model([node], [value("x", F32, "B", 4)], [value("y", F32, "B", 4)], [weight("w", np.eye(4, dtype=np.float32))])
    onnx.save(mm, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert graph.read(tmp_path / "m.onnx").dtypes == {"float32"}


def test_foreign_nodes_are_found_wherever_they_are(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["x"], [op], name=f"in_{op}", domain="my")
        return helper.make_graph([node], op, [], [value(op, F32, 1)])

    body = [helper.make_node("Deep", ["a"], ["r"], domain="other", name="deep")]
    function = helper.make_function("my", "F", ["a"], ["r"], body, [helper.make_opsetid("other", 1)])
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=branch("T"), else_branch=branch("E"), name="if"),
        helper.make_node("F", ["i"], ["y"], domain="my"),
        helper.make_node("Relu", ["y"], ["z"], domain="ai.onnx", name="standard"),
    ]
    inputs = [value("c", BOOL), value("x", F32, 1)]
    found = read(model(nodes, inputs, [value("z", F32, 1)], domains=["my", "other"], functions=[function]), tmp_path)
    assert set(found.foreign) == {
        ForeignNode("in_T", "my", "T", False),
        ForeignNode("in_E", "my", "E", False),
        ForeignNode("node_of_y", "my", "F", True),
        ForeignNode("deep", "other", "Deep", False),
    }


def test_attentions_as_one_op(tmp_path: Path) -> None:
    nodes = [
        attention("four", ["q", "k", "v"], "y"),
        attention("three", ["q3", "q3", "q3"], "y3", q_num_heads=4, kv_num_heads=2, scale=1.0),
        helper.make_node("Attention", ["y", "k", "v"], ["z"]),
    ]
    inputs = [*qkv(F16, 24), value("q3", BF16, "B", "S", 128)]
    found = read(model(nodes, inputs, [value("z", F16, "B", 4, "S", 24)]), tmp_path).attentions
    assert [(a.name, a.query, a.key, a.dtype, a.head_size, a.scale) for a in found] == [
        ("four", "q", "k", "float16", 24, 0.125),
        ("three", "q3", "q3", "bfloat16", 32, 1.0),
        ("node_of_z", "y", "k", None, None, None),
    ]


def test_a_graph_of_one_dtype_tells_that_of_every_attention(tmp_path: Path) -> None:
    nodes = [attention("a", ["q", "k", "v"], "y"), attention("b", ["y", "k", "v"], "z")]
    found = read(model(nodes, qkv(F32), [value("z", F32, "B", 4, "S", 64)]), tmp_path).attentions
    assert [a.dtype for a in found] == ["float32", "float32"]


def test_attentions_that_are_spelled_out(tmp_path: Path) -> None:
    nodes = spelled_out("/a", "q", "k", "v", "y")
    guard = [
        helper.make_node("Cast", ["/a_p"], ["cast"], to=F32, name="cast"),
        helper.make_node("Cast", ["cast"], ["back"], to=F16, name="back"),
    ]
    nodes[4].input[0] = "back"
    c = weight("c", np.array(0.125, np.float16))
    head = helper.make_node("Softmax", ["y"], ["z"], name="head")
    found = read(model([*nodes, *guard, head], qkv(F16), [value("z", F16, "B", 4, "S", 64)], [c]), tmp_path)
    assert [(a.name, a.op, a.nodes) for a in found.attentions] == [
        ("/a/Softmax", "Softmax", ("/a/Softmax", "/a/MatMul", "/a/MatMul_1"))
    ]


@pytest.mark.parametrize(
    ("text", "names", "size"),
    [
        (7, (), 7),
        ("batch", ("batch",), 3),
        ("past + length", ("past", "length"), 15),
        ("2*length - 1", ("length",), 9),
        ("(length + 3)//2", ("length",), 4),
        ("x.0", ("x.0",), 11),
        ("batch size", ("batch size",), 12),
        ("a ** b", ("a ** b",), 13),
        ("", ("",), 14),
    ],
)
def test_dimensions(text: int | str, names: tuple[str, ...], size: int) -> None:
    sizes = {"batch": 3, "past": 10, "length": 5, "x.0": 11, "batch size": 12, "a ** b": 13, "": 14}
    assert dimension.names(text) == names
    assert dimension.value(text, sizes) == size
