"""Foreign modules through both exporters: the same names, run at three shapes, nothing on stdout."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from foreign_modules import Cached, CrossAttention, Embedded, FixedLength, Keywords, Raw, SelfAttention, rand
from torch import nn

from export.capture import Captured, TensorSpec, capture, of_module
from export.capture.runnable import session
from export.errors import UsageError

EXPORTERS = ("dynamo", "torchscript")


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, activation="gelu")


def inputs_of(captured: Captured) -> dict[str, tuple[int | str, ...]]:
    return {spec.name: spec.shape for spec in captured.inputs}


def outputs_of(captured: Captured) -> dict[str, list[int | str]]:
    return {str(v.name): [d if isinstance(d, int) else d.value for d in v.shape] for v in captured.model.graph.outputs}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_self_attention_of_pytorch_keeps_its_length(exporter: str, capfd: pytest.CaptureFixture[str]) -> None:
    # A batch of one, as users draw it: the axis must not become a constant.
    captured = capture(of_module("mha", SelfAttention(), (rand(1, 7, 16),)), exporter=exporter)
    assert inputs_of(captured) == {"x": ("batch", "length", 16)}
    assert outputs_of(captured) == {"output_0": ["batch", "length", 16], "output_1": ["batch", "length", "length"]}
    assert captured.warnings == ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_one_tensor_given_three_times_is_three_inputs(exporter: str) -> None:
    x = rand(2, 7, 16)
    captured = capture(of_module("cross", CrossAttention(), (x, x, x)), exporter=exporter)
    assert inputs_of(captured) == {
        "query": ("batch", "length", 16),
        "key": ("batch", "key_length", 16),
        "value": ("batch", "key_length", 16),
    }
    assert outputs_of(captured) == {"output": ["batch", "length", 16]}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_encoder_layer_in_fp16(exporter: str) -> None:
    captured = capture(of_module("encoder", encoder(), (rand(2, 7, 16),)), dtype="fp16", exporter=exporter)
    assert captured.inputs == (TensorSpec("src", "float16", ("batch", "length", 16)),)
    weights = {v.dtype.name for v in captured.model.graph.initializers.values() if v.shape and len(v.shape) == 2}
    assert weights == {"FLOAT16"}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_keyword_arguments_constants_and_an_input_that_is_an_output(exporter: str) -> None:
    mask = torch.ones(2, 7, dtype=torch.bool)
    source = of_module("kw", Keywords(), {"scale": 0.5, "mask": mask, "x": rand(2, 7, 16), "causal": True})
    assert list(source.inputs) == ["x", "mask", "scale", "causal"]  # forward's order
    captured = capture(source, exporter=exporter)
    assert inputs_of(captured) == {"x": ("batch", "length", 16), "mask": ("batch", "length")}
    assert outputs_of(captured) == {"attended": ["batch", "length", 16], "x_out": ["batch", "length", 16]}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_nested_past_and_a_mask_over_past_and_present(exporter: str) -> None:
    past = ((rand(2, 2, 4, 8), rand(2, 2, 4, 8) + 1),)
    source = of_module("cached", Cached(), (rand(2, 3, 16), torch.ones(2, 7, dtype=torch.bool), past))
    assert source.sizes() == {"batch": 2, "length": 3, "past_key_values_length": 4}
    captured = capture(source, exporter=exporter)
    cache = ("batch", 2, "past_key_values_length", 8)
    assert inputs_of(captured) == {
        "x": ("batch", "length", 16),
        "mask": ("batch", "length + past_key_values_length"),
        "past_key_values_0_0": cache,
        "past_key_values_0_1": cache,
    }
    grown = ["batch", 2, "length + past_key_values_length", 8]
    assert outputs_of(captured) == {"output_0": ["batch", "length", 16], "output_1_0_0": grown, "output_1_0_1": grown}

    feeds = captured.flatten(
        {"x": rand(3, 2, 16), "mask": torch.ones(3, 9, dtype=torch.bool), "past_key_values": ((rand(3, 2, 7, 8),) * 2,)}
    )
    made = session(_runnable(captured)).run(None, feeds)
    assert [a.shape for a in made] == [(3, 2, 16), (3, 2, 9, 8), (3, 2, 9, 8)]


def _runnable(captured: Captured):
    from export.capture.runnable import expanded_masks

    return expanded_masks(captured.model) or captured.model


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_fixed_length_stays_and_the_warning_names_the_line(exporter: str) -> None:
    captured = capture(of_module("fixed", FixedLength(), (rand(2, 7, 16),)), exporter=exporter)
    assert inputs_of(captured) == {"x": ("batch", 7, 16)}
    (warning,) = captured.warnings
    assert warning.startswith("axis 1 of `x` stays 7: fixed by ")
    assert "foreign_modules.py" in warning and "x = x + self.position" in warning


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_ids_lengths_and_a_table_that_ends(exporter: str) -> None:
    source = of_module("embedded", Embedded(), (torch.randint(0, 50, (2, 12)), torch.tensor([12, 5])))
    assert source.dims == {"length": (1, 12, 12)}  # the example is as long as the table: it only shrinks
    captured = capture(source, exporter=exporter)
    assert inputs_of(captured) == {"ids": ("batch", "length"), "lengths": ("batch",)}
    assert [spec.dtype for spec in captured.inputs] == ["int64", "int64"]
    assert outputs_of(captured) == {"output": ["batch", "length", 16]}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_heads_stay_fixed_and_key_and_value_share_a_length(exporter: str) -> None:
    captured = capture(
        of_module("raw", Raw(), (rand(2, 4, 7, 8), rand(2, 4, 7, 8), rand(2, 4, 7, 8))), exporter=exporter
    )
    assert inputs_of(captured) == {
        "q": ("batch", 4, "length", 8),
        "k": ("batch", 4, "k_length", 8),
        "v": ("batch", 4, "k_length", 8),
    }


def test_bf16_is_run_widened_and_says_so() -> None:
    captured = capture(of_module("encoder", encoder(), (rand(2, 7, 16),)), dtype="bf16")
    assert captured.inputs[0].dtype == "bfloat16"
    assert [w for w in captured.warnings if "NOT RUN" in w and "bf16" in w]
    assert captured.flatten({"src": rand(2, 7, 16)})["src"].dtype.name == "bfloat16"


def test_integers_meet_bf16_in_a_trace() -> None:
    class Scaled(nn.Module):
        def forward(self, x, steps):
            return x * steps[..., None]

    # PyTorch writes a cast to complex128 here; unrepaired, no runtime takes the graph.
    captured = capture(
        of_module("scaled", Scaled(), (rand(2, 5, 4), torch.arange(5))), dtype="bf16", exporter="torchscript"
    )
    casts = [node.attributes["to"].as_int() for node in captured.model.graph if node.op_type == "Cast"]
    assert casts == [ir.DataType.BFLOAT16]


def test_an_unused_input_is_no_input_of_the_graph() -> None:
    class Unused(nn.Module):
        def forward(self, x, other):
            return x * 2

    for exporter in EXPORTERS:
        captured = capture(of_module("unused", Unused(), (rand(2, 3), rand(2, 3))), exporter=exporter)
        assert list(inputs_of(captured)) == ["x"]
        assert "`other` reaches no output, so the graph has no such input." in captured.warnings
        assert list(captured.flatten({"x": rand(2, 3), "other": rand(2, 3)})) == ["x"]


def test_flatten_refuses_strangers_and_gaps() -> None:
    captured = capture(of_module("cross", CrossAttention(), (rand(2, 5, 16),) * 3), exporter="torchscript")
    x = rand(2, 5, 16)
    with pytest.raises(UsageError, match="no parameter `keys`"):
        captured.flatten({"query": x, "keys": x, "value": x})
    with pytest.raises(UsageError, match="input `value` is not among"):
        captured.flatten({"query": x, "key": x})
    fed = captured.flatten({"query": x.double().numpy(), "key": x, "value": x})
    assert fed["query"].dtype == np.float32


def test_user_lines_are_kept_by_both_exporters() -> None:
    source = of_module("keywords", Keywords(), (rand(2, 7, 16),))
    for exporter in EXPORTERS:
        graph = capture(source, exporter=exporter).model.graph
        softmax = next(node for node in graph if node.op_type == "Softmax")
        trace = softmax.metadata_props["pkg.torch.onnx.stack_trace"]
        assert "foreign_modules.py" in trace and "scores.softmax(-1) @ x" in trace
        assert "exporting.py" not in trace and "torchscript.py" not in trace


def test_wrapper_names_are_not_in_the_graph() -> None:
    graph = capture(of_module("cross", CrossAttention(), (rand(2, 5, 16),) * 3), exporter="torchscript").model.graph
    names = [*(node.name for node in graph), *graph.initializers]
    assert not [name for name in names if "module" in str(name).lower()]
    assert "attention.out_proj.weight" in names
