"""The operator in PyTorch: checked by PyTorch's own test, traced without data, exported as one node that still runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import CALLS

from plugins.eager import rotary_attention_eager
from plugins.onnx_function import onnx_function
from plugins.torch_operator import rotary_attention, translation_table


@pytest.mark.parametrize("call", CALLS[::7], ids=lambda call: call.name)
def test_pytorch_finds_nothing_wrong_with_it(call: object) -> None:
    tensors = call.tensors(torch.float32)  # type: ignore[attr-defined]
    arguments = (*tensors.values(), *call.settings.as_attributes().values())  # type: ignore[attr-defined]
    torch.library.opcheck(torch.ops.attnproof.rotary_attention.default, arguments)


def test_a_call_needs_only_what_it_uses() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(rotary_attention(q, k, v), expected)


def test_what_is_not_read_is_made_once_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins import torch_operator

    q = torch.zeros(1)
    assert torch_operator._unread(q, (1,), torch.int32) is not torch_operator._unread(q, (1,), torch.int32)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)  # the tensors stay where they are
    assert torch_operator._unread(q, (1,), torch.int32) is torch_operator._unread(q, (1,), torch.int32)
    assert torch_operator._unread(q, (1, 1), torch.float32).shape == (1, 1)


def test_a_wrong_call_is_refused_with_a_sentence() -> None:
    q, k = torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match="q is float32, and v is float16; give one type"):
        rotary_attention(q, k, k.half())
    with pytest.raises(ValueError, match="lengths is int64; it is int32"):
        rotary_attention(q, k, k, lengths=torch.tensor([3]))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(64.0)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return rotary_attention(q, k, v, rotary=(self.cos, self.sin), causal_kind=1, softcap=20.0)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_export_holds_one_node_and_onnx_runtime_runs_it(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort

    torch.manual_seed(0)
    inputs = (torch.randn(2, 4, 6, 16), torch.randn(2, 2, 6, 16), torch.randn(2, 2, 6, 16))
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        Block().eval(),
        inputs,
        dynamo=True,
        opset_version=23,
        dynamic_shapes=({**axes}, {**axes}, {**axes}),
        custom_translation_table=translation_table(),
        verbose=False,
    )
    model = program.model_proto
    assert [node.op_type for node in model.graph.node if node.domain == "attnproof"] == ["RotaryAttention"]
    model.functions.append(onnx_function())
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, length in ((2, 6), (1, 1), (3, 33)):
        feeds = [torch.randn(batch, heads, length, 16) for heads in (4, 2, 2)]
        names = [i.name for i in session.get_inputs()]
        (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, feeds, strict=True)})
        np.testing.assert_allclose(found, Block()(*feeds).numpy(), rtol=0, atol=5e-6)


def test_eager_keeps_float64() -> None:
    tensors = CALLS[0].tensors(torch.float64)
    assert rotary_attention_eager(**tensors, settings=CALLS[0].settings).dtype == torch.float64


def test_importing_the_operator_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import plugins.torch_operator, plugins.onnx_function"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
