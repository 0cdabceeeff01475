"""ONNX's own expansions of Attention and RotaryEmbedding, each fused back to the one op it came from.

The models and their data come with the onnx package (its backend tests). What came out is held to the data within the
test's own tolerances on ONNX's reference implementation, and on ONNX Runtime's CPU provider but for those named here.
"""

import functools
import warnings
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as FailedByRuntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplementedByRuntime
from text_graphs import check, serialised, session

from export.fuse import fuse

REFERENCE = {
    "attention_3d_causal_bf16": "no bfloat16 kernels",
    "attention_4d_attn_mask_causal_bf16": "no bfloat16 kernels",
    "attention_4d_causal_bf16": "no bfloat16 kernels",
    "attention_4d_causal_padded_kv_bf16": "no bfloat16 kernels",
    "attention_4d_padded_kv_bf16": "no bfloat16 kernels",
    "attention_4d_causal_fp16": "its half precision kernel rounds 2 of 192 numbers one step further than the tolerance",
}
"""The tests that ONNX Runtime's CPU provider does not pass, and why: ONNX's reference implementation alone does."""


@functools.cache
def expanded() -> dict[str, TestCase]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases of other operators overflow on purpose
        found = load_model_tests(kind="node")
    named = ((t.name.removeprefix("test_").removesuffix("_expanded"), t) for t in found if t.name.endswith("_expanded"))
    return {name: t for name, t in named if name.startswith(("attention_", "rotary_embedding"))}


def test_there_are_as_many_as_known() -> None:
    kinds = [name.split("_")[0] for name in expanded()]
    assert (kinds.count("attention"), kinds.count("rotary")) == (93, 8)


@pytest.mark.parametrize("name", sorted(expanded()))
def test_expanded(name: str) -> None:
    case = expanded()[name]
    result = fuse(ir.from_proto(case.model))
    ops = [node.op_type for node in result.model.graph]
    expected = "Attention" if name.startswith("attention") else "RotaryEmbedding"
    assert ops.count(expected) == 1 and "Softmax" not in ops and "MatMul" not in ops
    if expected == "Attention":
        assert [(row.status, row.code) for row in result.attentions] == [("fused", "F001")]
        assert result.attentions[0].verify is not None and result.attentions[0].verify.cases >= 1
    check(result.model)
    assert serialised(fuse(result.model).model) == serialised(result.model)

    names = [value.name for value in case.model.graph.input]
    fused = ir.to_proto(result.model)
    for inputs, outputs in case.data_sets:
        feeds = dict(zip(names, inputs, strict=True))
        assert_close(case, outputs, ReferenceEvaluator(fused).run(None, feeds))
        if name not in REFERENCE:
            assert_close(case, outputs, session(result.model)(feeds))


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_what_onnx_runtime_does_not_check_is_named_for_a_reason(name: str) -> None:
    case = expanded()[name]
    (inputs, outputs), *_ = case.data_sets
    feeds = dict(zip([value.name for value in case.model.graph.input], inputs, strict=True))
    with pytest.raises(
        (NotImplementedByRuntime, FailedByRuntime, AssertionError)
    ):  # the day it does, the name above can go
        assert_close(case, outputs, session(fuse(ir.from_proto(case.model)).model)(feeds))


def assert_close(case: TestCase, outputs: Iterable[np.ndarray], found: Iterable[np.ndarray]) -> None:
    """Holds outputs to the data of a test within its tolerances."""
    for want, have in zip(outputs, found, strict=True):
        assert want.shape == have.shape and want.dtype == have.dtype
        have, want = have.astype(np.float64), want.astype(np.float64)
        np.testing.assert_allclose(have, want, rtol=case.rtol, atol=case.atol, err_msg=case.name)
