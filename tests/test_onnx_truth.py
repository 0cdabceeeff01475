"""The float64 twin of an ONNX file: it must really compute in float64, and say how it did."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from export import onnx_truth


def feeds(dtype: str) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 5, small_models.WIDTH)).astype(dtype)}


def by_hand(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(D)) v in float64 from the weights of the file."""
    weight = {i.name: onnx.numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}

    def heads(name: str) -> np.ndarray:
        return (x.astype(np.float64) @ weight[name]).reshape(2, 5, 2, 8).transpose(0, 2, 1, 3)

    q, k, v = heads("wq"), heads("wk"), heads("wv")
    e = np.exp(q @ k.swapaxes(-1, -2) * weight["scale"])
    return ((e / e.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3).reshape(2, 5, 16)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_twin_is_float64_to_the_last_digits(dtype: str) -> None:
    model = small_models.attention(dtype)
    x = feeds(dtype)
    truth = onnx_truth.of(ir.from_proto(model), x)
    assert truth.how == "float64 on ONNX Runtime"
    (y,) = truth.run(x).values()
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, by_hand(model, x["x"]), rtol=1e-12, atol=1e-14)


def test_casts_and_constants_are_widened_too() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float16[n] x) => (float16[n] y) {\n'
        "  c = Constant<value_float = 0.1>()\n  a = Cast<to = 1>(x)\n  b = Mul(a, c)\n  y = Cast<to = 10>(b)\n}"
    )
    x = {"x": np.array([1.0, 3.0], np.float16)}
    (y,) = onnx_truth.of(ir.from_proto(model), x).run(x).values()
    np.testing.assert_allclose(y, [np.float64(np.float32(0.1)), 3 * np.float64(np.float32(0.1))], rtol=1e-15)


def test_an_operator_without_float64_kernel_goes_to_the_reference_evaluator() -> None:
    # ONNX Runtime's CPU provider convolves in float32 only.
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[1, 1, 4] x, float[1, 1, 2] w) => (float[1, 1, 3] y)'
        " { y = Conv(x, w) }"
    )
    x = {"x": np.array([[[1, 2, 3, 4]]], np.float32), "w": np.array([[[0.1, 0.2]]], np.float32)}
    truth = onnx_truth.of(ir.from_proto(model), x)
    assert truth.how == "float64 on ONNX's reference evaluator"
    (y,) = truth.run(x).values()
    w = x["w"].astype(np.float64)[0, 0]
    np.testing.assert_allclose(y[0, 0], [w[0] * i + w[1] * (i + 1) for i in (1, 2, 3)], rtol=1e-14)


def test_what_only_onnx_runtime_knows_is_float32_and_says_so() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]> g (float[1, 4] x) => (float[1, 4] y)'
        " { y = com.microsoft.Gelu(x) }"
    )
    truth = onnx_truth.of(ir.from_proto(model), {"x": np.ones((1, 4), np.float32)})
    assert truth.how.startswith("float32 on ONNX Runtime, optimisations off (not possible in float64")
