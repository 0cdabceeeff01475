"""Names in the written graph, and the silence around writing it."""

import logging
import os
import sys
import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.capture import capture, load_source, naming, outputs, symbols, tree
from export.capture.arrays import as_array
from export.capture.quiet import plain_attention, quiet


def model(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')


def shape(value: ir.Value) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in value.shape]


def test_symbols_are_renamed_everywhere_and_all_at_once() -> None:
    made = model("g (float[s1, s27, 4] x, float[s1, s62] p) => (float[s1, y] out) { t = Relu(x) \n out = Relu(p) }")
    inner = made.graph.node(0).outputs[0]
    inner.shape = ir.Shape(["s27", "s27 + s62", "16", "s2", "batch"])
    symbols.rename(made, {"s1": "batch", "s27": "length", "s62": "past"})
    assert shape(inner) == ["length", "length + past", 16, "s2", "batch_other"]
    assert shape(made.graph.inputs[0]) == ["batch", "length", 4] and shape(made.graph.outputs[0]) == ["batch", "y"]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [("past + length", "length + past"), ("length*2", "2*length"), ("16", 16), ("a//2", "a//2"), ("N + S", "N + S"),
     ("Add19_dim_1", "Add19_dim_1"), ("onnx::Shape.1", "onnx::Shape.1"), (3, 3), ("length + length", "2*length")],
)  # fmt: skip
def test_expressions_are_written_one_way(written, wanted) -> None:
    assert symbols.canonical(written) == wanted


def test_one_symbol_with_two_names_keeps_the_first() -> None:
    shapes = {"x": ("s1", "s2"), "y": ("s2", 4)}
    names, notes = symbols.names_for(shapes, {"x": {0: "batch", 1: "length"}, "y": {0: "memory", 1: "gone"}})
    assert names == {"s1": "batch", "s2": "length"}
    assert notes == ["`memory` always equals `length` in this model, so both are called `length`."]


def test_inputs_outputs_and_strangers_under_the_same_names() -> None:
    made = model(
        "g (float[2] a, float[2] idle) => (float[2] b, float[2] b2) { x = Relu(a) \n b = Relu(x) \n b2 = Relu(b) }"
    )
    made.graph.outputs[1] = made.graph.outputs[0]  # one value returned twice
    made.graph.outputs.append(made.graph.inputs[0])  # and an input returned as it is
    names = naming.output_names(["x", "y", "x"], ["x", "idle"])
    assert names == ["x_out", "y", "x_out_"]
    assert naming.apply(made, ["x", "idle"], names) == ["idle"]
    assert [v.name for v in made.graph.inputs] == ["x"] and [v.name for v in made.graph.outputs] == names
    proto = ir.to_proto(made)
    import onnx
    import onnxruntime

    onnx.checker.check_model(proto, full_check=True)
    got = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": np.array([-1, 2], np.float32)}
    )
    assert [list(a) for a in got] == [[0, 2], [0, 2], [-1, 2]]


def test_output_sizes_are_what_every_run_agrees_with() -> None:
    made = model("g (float[n] a) => (float[length, 7, Add_1_dim, 2, u0, batch] y) { y = Relu(a) }")
    runs = [({"batch": b, "length": n}, [(n, n, n + 3, 2 * b, 99 * b * n, b)]) for b, n in ((2, 7), (5, 12), (1, 8))]
    outputs.label(made, runs)
    assert shape(made.graph.outputs[0]) == ["length", "length", "length + 3", "2*batch", "y_4", "batch"]
    untouched = model("g (float[n] a) => (float[7] y) { y = Relu(a) }")
    outputs.label(untouched, runs[:1])
    assert shape(untouched.graph.outputs[0]) == [7]


def test_nested_values_have_flat_names_and_come_back() -> None:
    values = {"x": 1, "past": ((2, None), [3]), "past_1_0": 4, "masks": {"keep": 5}}
    named = tree.leaves(values)
    assert named == [("x", 1), ("past_0_0", 2), ("past_1_0_", 3), ("past_1_0", 4), ("masks_keep", 5)]
    assert tree.rebuild(values, lambda name, leaf: (name, leaf)) == {
        "x": ("x", 1), "past": ((("past_0_0", 2), None), [("past_1_0_", 3)]),
        "past_1_0": ("past_1_0", 4), "masks": {"keep": ("masks_keep", 5)},
    }  # fmt: skip
    assert tree.outputs(7) == [("output", 7)] and tree.outputs((7, None, 8)) == [("output_0", 7), ("output_2", 8)]
    assert tree.outputs({"a": 1, "b": (2,)}) == [("a", 1), ("b_0", 2)]


def test_bfloat16_crosses_into_numpy_bit_by_bit() -> None:
    x = torch.tensor([1.0, -2.5, 3e38, float("inf")]).bfloat16()
    array = as_array(x)
    assert array.dtype.name == "bfloat16" and np.array_equal(array.astype(np.float32), x.float().numpy())
    assert as_array(x, "float16").dtype == np.float16 and as_array(torch.tensor(1), "float16").dtype == np.int64
    assert as_array(torch.tensor(2.0)).shape == ()


@pytest.mark.parametrize("fail", [False, True])
def test_quiet_collects_everything_and_puts_everything_back(fail: bool, capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.onnx")
    before = (logger.handlers, logger.propagate, sys.stdout)
    try:
        with quiet() as heard, plain_attention():
            assert not torch.backends.mha.get_fastpath_enabled()
            print("python")
            os.write(1, b"descriptor\n")
            logger.warning("logged %d", 1)
            warnings.warn("warned", stacklevel=1)
            if fail:
                raise KeyError("inside")
    except KeyError:
        assert fail
    assert {"python", "descriptor"} <= set(heard.output.split())
    assert heard.log == ["torch.onnx: logged 1"] and [str(w.message) for w in heard.caught] == ["warned"]
    assert (logger.handlers, logger.propagate, sys.stdout) == before and torch.backends.mha.get_fastpath_enabled()
    print("after")
    assert capfd.readouterr() == ("after\n", "")


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_form_keeps_its_names_through_both_exporters(exporter: str) -> None:
    source = load_source("mha-rope")
    assert source.form is not None
    captured = capture(source, dtype="fp16", exporter=exporter)
    shapes = {spec.name: dict(enumerate(spec.shape)) for spec in captured.inputs}
    assert list(shapes) == list(source.form.dynamic)
    for name, axes in source.form.dynamic.items():
        assert {axis: shapes[name][axis] for axis in axes} == dict(axes)
    assert captured.inputs[0].dtype == "float16" and captured.warnings == ()
