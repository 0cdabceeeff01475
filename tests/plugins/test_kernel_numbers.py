"""The kernel, run by Triton's interpreter, gives what float64 loops give; and so does its ONNX function."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import CALLS, VARIANTS, Call

from plugins.contract import ROTARY_ATTENTION
from plugins.onnx_function import onnx_function

pytest.importorskip("triton", reason="NOT RUN: Triton is not installed")

HERE = Path(__file__).parent
UNIT = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def by_hand(call: Call, tensors: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the output [B, H, S, E], P|V| and max|s|, by loops in float64; what is rotated is rounded to its type."""
    s, dtype = call.settings, tensors["q"].dtype
    q, k, v, cos, sin, bias = (tensors[n].double().numpy() for n in ("q", "k", "v", "cos", "sin", "bias"))
    bias = np.broadcast_to(bias, (call.batch, call.heads, call.queries, call.keys)) if s.has_bias else None
    out = np.zeros((*q.shape[:3], v.shape[3]))
    size, largest = np.zeros_like(out), 0.0

    def turn(row: np.ndarray, position: int) -> np.ndarray:
        position = min(max(position, 0), cos.shape[0] - 1)
        row, half = row.copy(), s.rotary_embedding_dim // 2
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if s.interleaved else (i, i + half)
            one, two, c, z = row[a], row[b], cos[position, i], sin[position, i]
            row[a], row[b] = one * c - two * z, two * c + one * z
        return torch.from_numpy(row).to(dtype).double().numpy()

    for b in range(call.batch):
        seen = min(max(call.lengths[b], 0), call.keys) if s.has_lengths else call.keys
        shift = seen - call.queries if s.causal_kind == 2 else 0
        for h in range(call.heads):
            g = h // (call.heads // call.kv_heads)
            keys = np.stack([turn(k[b, g, j], j) if s.rotate_key else k[b, g, j] for j in range(call.keys)])
            for i in range(call.queries):
                query = turn(q[b, h, i], i + shift) if s.rotary_embedding_dim else q[b, h, i]
                scores = keys @ query * s.scale
                felt = np.abs(scores)
                if s.softcap:  # scores that all but cancelled still carry the rounding of the terms they are a sum of
                    bent = np.tanh(scores / s.softcap)
                    scores, felt = s.softcap * bent, np.abs(keys) @ np.abs(query) * s.scale * (1 - bent**2)
                if bias is not None:
                    scores = scores + bias[b, h, i]
                j = np.arange(call.keys)
                keep = j < seen
                if s.causal_kind:
                    keep &= j <= i + shift
                if s.window:
                    keep &= i + shift - j < s.window
                if keep.any():
                    weights = np.exp(scores[keep] - scores[keep].max())
                    weights /= weights.sum()
                    out[b, h, i], size[b, h, i] = weights @ v[b, g][keep], weights @ np.abs(v[b, g][keep])
                    largest = max(largest, float(np.maximum(felt, np.abs(scores))[keep].max()))
    return out, size, largest


def assert_close(found: torch.Tensor, call: Call, tensors: dict[str, torch.Tensor], dtype: str, c: float) -> None:
    """Checks |error| <= c u (2 + max|s|) P|V|: the bound of a fused attention whose scores are float32."""
    expected, size, largest = by_hand(call, tensors)
    u = UNIT[dtype]
    budget = c * u * (2 + largest) * size + 2**-24
    error = np.abs(found.double().numpy() - expected)
    worst = np.unravel_index(np.argmax(error - budget), error.shape)
    assert (error <= budget).all(), f"{call.name} {dtype} at {worst}: {error[worst]:.3g} > {budget[worst]:.3g}"


def outputs(folder: Path, *kernel: str) -> dict[str, torch.Tensor]:
    """Returns what Triton's interpreter makes of every call; it is chosen when Triton is imported, so in a process."""
    file = folder / "outputs.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(HERE / "interpret.py"), str(file), *kernel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(file)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Returns what the ordinary kernel makes of every call."""
    return outputs(tmp_path_factory.mktemp("kernel"))


# Products and softmax in float32 and one rounding of the weights and of the output at the tensors' own type.
BUDGET = {"fp32": 10.0, "fp16": 1.0, "bf16": 1.0}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_the_kernel_gives_what_loops_give(call: Call, dtype: str, interpreted: dict[str, torch.Tensor]) -> None:
    assert_close(interpreted[f"{call.name} {dtype}"], call, call.tensors(DTYPES[dtype]), dtype, BUDGET[dtype])


@pytest.fixture(scope="module")
def peeled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Returns what the kernel makes of some calls where it walks whole tiles first and loads by descriptors."""
    return outputs(tmp_path_factory.mktemp("peeled"), "peeled")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", [call for call in CALLS if call.name in VARIANTS], ids=lambda call: call.name)
def test_no_variant_changes_the_numbers(call: Call, dtype: str, peeled: dict[str, torch.Tensor]) -> None:
    assert_close(peeled[f"{call.name} {dtype}"], call, call.tensors(DTYPES[dtype]), dtype, BUDGET[dtype])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_eager_gives_what_loops_give(call: Call) -> None:
    from plugins.eager import rotary_attention_eager

    tensors = call.tensors(torch.float32)
    assert_close(rotary_attention_eager(**tensors, settings=call.settings), call, tensors, "fp32", 10.0)


@pytest.mark.parametrize("dtype", ("fp32", "fp16"))
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_onnx_runtime_runs_the_function_instead(call: Call, dtype: str) -> None:
    import onnx
    import onnxruntime as ort

    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
    tensors = call.tensors(DTYPES[dtype])
    types = {torch.int32: onnx.TensorProto.INT32, torch.float32: onnx.TensorProto.FLOAT, DTYPES[dtype]: kinds[dtype]}
    node = onnx.helper.make_node(
        ROTARY_ATTENTION.name, list(tensors), ["out"], domain=ROTARY_ATTENTION.domain, **call.settings.as_attributes()
    )
    inputs = [onnx.helper.make_tensor_value_info(n, types[t.dtype], [None] * t.ndim) for n, t in tensors.items()]
    graph = onnx.helper.make_graph(
        [node], "g", inputs, [onnx.helper.make_tensor_value_info("out", kinds[dtype], [None] * 4)]
    )
    model = onnx.helper.make_model(
        graph,
        functions=[onnx_function()],
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(ROTARY_ATTENTION.domain, 1)],
        ir_version=11,
    )
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
    assert_close(torch.from_numpy(found), call, tensors, dtype, BUDGET[dtype])


def test_rows_that_see_no_key_are_zero(interpreted: dict[str, torch.Tensor]) -> None:
    out = interpreted["lengths-and-none fp32"]
    assert not out[0].any()
    assert out[1].any()
    early = interpreted["more-queries-than-keys fp16"]
    assert not early[:, :, : 40 - 9].any()
    assert early[:, :, 40 - 9 :].any()
    assert math.isfinite(float(early.float().sum()))
