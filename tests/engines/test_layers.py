"""Reading the builder's layer list: real lines, lines of the shapes users can cause, and lines that cannot be read."""

import logging
from pathlib import Path

import pytest
from engine_models import F32, make, one

from engines import layers
from engines.layers import Layer, LayerTensor

LINE = (
    "Name: _gemm_mha_v2_myl0_2, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [-1,-1,64], Strides: [-1,64,1], "
    "StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }, { Name: m, Dimensions: [], "
    "Strides: [], StrideOrder: [], Datatype: FP8, Format: (NHWC) Channel major format }], Constants: [], Outputs: [ "
    "{ Name: a}, {b, Dimensions: [-1], Strides: [1], StrideOrder: [0], Datatype: BFloat16, Format: (Linear) Row }], "
    "TacticName: _gemm_mha_v2_0x4d36, StreamId: 0, Metadata: [ONNX Layer: a, b]]\x1f[ONNX Layer: r]\x1f[ONNX Layer: r]"
)


def test_every_field_of_a_line() -> None:
    (layer,) = layers.parse([f"Layers:\n{LINE}\n\nI/O Tensors:\n Name: q, IOMode: Input"])
    assert layer == Layer(
        "_gemm_mha_v2_myl0_2",
        "kgen",
        "_gemm_mha_v2_0x4d36",
        (LayerTensor("q", "float16", (-1, -1, 64)), LayerTensor("m", "fp8", ())),
        (LayerTensor("a}, {b", "bfloat16", (-1,)),),
        ("a, b]", "r"),
    )


def test_a_line_without_tensors() -> None:
    line = (
        "Name: s, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
    )
    assert layers.parse([f"Layers:\n{line}"]) == (Layer("s", "shape_call", "", (), (), ()),)


def test_signals_and_waits_between_streams(caplog: pytest.LogCaptureFixture) -> None:
    line = (
        "Name: __mye9639_myl0_4, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , "
        "StreamId: 1, EventId: 4, Metadata: "
    )
    with caplog.at_level(logging.WARNING):
        assert layers.parse([f"Layers:\n{line}"]) == (Layer("__mye9639_myl0_4", "signal", "", (), (), ()),)
    assert not caplog.records


def test_other_messages_hold_no_layers() -> None:
    assert layers.parse(["Layer: x Host Persistent: 80 bytes", "Layers", ""]) == ()


def test_a_line_that_cannot_be_read_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(layers.parse([f"Layers:\nLayer(Myelin): other style\n{LINE}"])) == 1
    assert "cannot be read: Layer(Myelin): other style" in caplog.text


def test_scratch_memory() -> None:
    assert layers.scratch(["Max Scratch Memory: 4096 bytes", "Max Scratch Memory: 71303168 bytes"]) == 71303168
    assert layers.scratch(["Total Scratch Memory: 4096 bytes"]) is None


def test_every_line_of_a_real_build_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
    built = make(one(F32, decomposable=True), tmp_path)
    section = built.log.split("VERBOSE: Layers:\n")[1].split("\n\n")[0]
    assert len(built.layers) == section.count("LayerType: ") == len(section.splitlines())
    assert {t.dtype for layer in built.layers for t in layer.inputs} == {"float32"}
    assert any(t.name == "q" and t.shape[-1] == 64 for layer in built.layers for t in layer.inputs)
    assert "cannot be read" not in caplog.text


def test_a_copy_of_a_shape_to_the_device_is_a_layer() -> None:
    line = (
        "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: /Div_output_0, "
        "Location: Device, Dimensions: [], Datatype: Int64, Format: Format not available due to dynamic shapes }], "
        "ParameterType: ShapeH2D, shapeValues0: [-16], TacticValue: 0x0000000000000000, StreamId: 0, Metadata: "
    )
    (layer,) = layers.parse([f"Layers:\n{line}"])
    assert (layer.kind, layer.tactic, layer.inputs, layer.origins) == ("ShapeHostToDevice", "", (), ())
    assert [(t.name, t.dtype, t.shape) for t in layer.outputs] == [("/Div_output_0", "int64", ())]
