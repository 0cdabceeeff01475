"""ONNX Runtime's CUDA provider, before and after fusing, against PyTorch in float64: every form, dtype and case."""

from functools import cache

import pytest
from gpu_machine import FORM_DTYPES, Machine, opened

from export.model import registry

pytestmark = pytest.mark.gpu


@cache
def graphs(form: str, dtype: str):
    """Returns (source, captured, the graph before fusing, after it), the graphs serialised for ONNX Runtime."""
    pytest.importorskip("onnx_ir", reason="NOT RUN: onnx-ir is not installed")
    pytest.importorskip("onnx_shape_inference", reason="NOT RUN: onnx-shape-inference is not installed")
    import onnx_ir as ir

    from export.capture import capture, load_source
    from export.fuse import Options, fuse
    from export.lower import lower

    source = load_source(form)
    captured = capture(source, dtype=dtype, exporter=registry.get(form).exporters[0])
    fused = fuse(captured.model, Options(verify=False))
    assert fused.summary.fused + fused.summary.already == registry.get(form).attentions
    after = lower(fused.model, "ort").model
    return source, captured, *(ir.to_proto(m).SerializeToString() for m in (captured.model, after))


@pytest.mark.parametrize("dtype", FORM_DTYPES)
@pytest.mark.parametrize("form", registry.form_names())
def test_fused_and_not(form: str, dtype: str, machine: Machine, record_property) -> None:
    from export.parity import check_stages

    source, captured, before, after = graphs(form, dtype)
    runners = {"exported": opened(before, machine), "fused": opened(after, machine)}
    report = check_stages(source, captured, runners, dtype=dtype)
    for stage in runners:
        worst = report.worst(stage)
        record_property(f"{stage} error/budget", worst.ratio if worst else None)
    assert {row.status for row in report.rows} == {"ok"}, [row for row in report.rows if row.status != "ok"]
