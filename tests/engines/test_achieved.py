"""What precision an engine achieved, read from layer lists that real builders wrote."""

from pathlib import Path

import pytest
from engine_models import BF16, F16, F32, make, one

from engines import achieved
from engines.achieved import Achieved
from engines.layers import Layer, LayerTensor


def layer(name: str, kind: str, *dtypes: str, origins: tuple[str, ...] = ()) -> Layer:
    return Layer(name, kind, "", tuple(LayerTensor("x", dtype, ()) for dtype in dtypes), (), origins)


@pytest.mark.parametrize(("dtype", "precision"), [(F16, "fp16"), (BF16, "bf16"), (F32, "fp32")])
def test_a_real_engine_achieves_what_its_graph_is_in(tmp_path: Path, dtype: int, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
    built = make(one(dtype, decomposable=dtype == F32), tmp_path)
    choice = built.attentions["attn"]
    assert choice.fused is (dtype != F32)
    assert achieved.of_kernels(built.layers, choice.kernels) == precision
    whole = achieved.of_engine(built.layers, choice.kernels)
    assert whole.precision == precision
    assert set(whole.products) == set(whole.layers) == {precision}
    assert whole.others == ()


def test_a_softmax_in_float32_between_products_in_half_precision_is_as_it_should_be() -> None:
    layers = [layer("a", "gemm", "float16"), layer("s", "kgen", "float32"), layer("b", "gemm", "float16")]
    assert achieved.of_kernels(layers, ("a", "s", "b")) == "fp16"
    assert achieved.of_engine(layers, ("a", "b")) == Achieved("fp16", {"fp16": 2}, {"fp16": 2, "fp32": 1})


def test_one_wide_product_decides() -> None:
    layers = [layer("a", "gemm", "float16"), layer("b", "gemm", "float32", "float32", origins=("n",))]
    assert achieved.of_kernels(layers, ("a", "b")) == "fp32"
    assert achieved.of_engine(layers) == Achieved(
        "fp32", {"fp16": 1, "fp32": 1}, {"fp16": 1, "fp32": 1}, (("a", "fp16"), ("n", "fp32"))
    )


def test_a_product_that_computes_angles_is_left_out() -> None:
    layers = [layer("a", "gemm", "float16"), layer("b", "gemm", "float32", origins=("angles",))]
    assert achieved.of_engine(layers, angles={"angles"}).precision == "fp16"


def test_what_a_product_adds_in_its_epilogue_is_no_operand() -> None:
    assert achieved.of_kernels([layer("a", "runtime_fusion", "float16", "float32")], ("a",)) == "fp16"


def test_nothing_to_read_is_unknown() -> None:
    assert achieved.of_kernels([layer("a", "gemm", "int8")], ("a",)) is None
    assert achieved.of_engine([]) == Achieved()
    assert achieved.of_engine([]).precision == "unknown"
