"""The decode loop with its cache on the GPU, on ONNX Runtime and in engines: prefill and steps give one forward."""

import sys
from pathlib import Path

import pytest
from gpu_machine import Machine, opened, require

pytest.importorskip("onnx_shape_inference", reason="NOT RUN: onnx-shape-inference is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "decode"))

import decoders
import onnx_ir as ir

import export
from engines import vendor
from engines.errors import BackendMissingError
from export.lower import for_ort_check

pytestmark = pytest.mark.gpu
FORMS = ("mha-rope-causal", "llama-gqa-sdpa", "gpt-causal", "flash-packed")


@pytest.mark.parametrize("dtype", ("fp16", "fp32"))
@pytest.mark.parametrize("form", FORMS)
def test_a_growing_cache_on_onnx_runtime(
    form: str, dtype: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    def on_machine(model: ir.Model):
        return opened(ir.to_proto(for_ort_check(model)).SerializeToString(), machine)

    monkeypatch.setattr(decoders, "opened", on_machine)
    of = decoders.decoder(form, dtype)
    rows = decoders.judged(of, decoders.growing(of))
    record_property("error/budget", {row.case: row.ratio for row in rows if row.status == "ok"})
    found = {row.case: row.status for row in rows}
    assert found["steps"] == found["cache-full"] == "ok" and "fail" not in found.values(), rows


@pytest.fixture
def engines_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, lets the graphs that the engines were built from stand in for them."""
    if not machine.real:
        from export.decode import stage

        def stand_in(decoding, folder: Path, sm: int):
            files = {name: next(folder.glob(f"{name}.*.onnx")).name for name in ("prefill", "step")}
            assert all((folder / f"{name}.{sm}.engine").is_file() for name in files)
            return stage._on_cpu(decoding, files, folder, "")

        monkeypatch.setattr(stage, "_on_gpu", stand_in)


@pytest.mark.parametrize("target", vendor.NAMES)
@pytest.mark.parametrize("dtype", ("fp16", "bf16"))
@pytest.mark.parametrize("form", FORMS)
def test_a_static_cache_in_engines(
    form: str, dtype: str, target: str, machine: Machine, engines_run: None, tmp_path: Path, record_property
) -> None:
    require(target, machine.sm, dtype)
    try:
        report = export.build(
            form, decode=True, out=str(tmp_path / form), target=target, dtype=dtype, sm=(machine.sm,), cache=False
        )
    except BackendMissingError as error:
        pytest.skip(f"NOT RUN: {error}")
    rows = [row for row in report.decode["parity"]["rows"] if row["stage"] == f"decode-sm{machine.sm}"]
    record_property("error/budget", {row["case"]: row["ratio"] for row in rows})
    assert rows and {row["status"] for row in rows} == {"ok"}, rows
