"""Engines of either vendor, built for the GPU at hand and run on it, against PyTorch: every form, dtype and case."""

from pathlib import Path

import pytest
from gpu_machine import FORM_DTYPES, Machine, require

import export
from engines import vendor
from engines.errors import BackendMissingError
from export.model import registry

pytestmark = pytest.mark.gpu


@pytest.fixture
def engines_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, lets the graph that the engine was built from stand in for it."""
    if not machine.real:
        from export import judge

        def stand_in(path: Path):
            return judge._on_ort(next(path.parent.glob("lowered.*.onnx")), "")

        monkeypatch.setattr(judge, "_engine", stand_in)


@pytest.mark.parametrize("target", vendor.NAMES)
@pytest.mark.parametrize("dtype", FORM_DTYPES)
@pytest.mark.parametrize("form", registry.form_names())
def test_the_engine_gives_what_pytorch_gives(
    target: str, form: str, dtype: str, machine: Machine, engines_run: None, tmp_path: Path, record_property
) -> None:
    require(target, machine.sm, dtype)
    try:
        report = export.build(
            form, out=str(tmp_path / form), target=target, dtype=dtype, sm=(machine.sm,), cache=False, force=True
        )
    except BackendMissingError as error:
        pytest.skip(f"NOT RUN: {error}")
    stage = f"engine-sm{machine.sm}"
    rows = [row for row in report.parity.rows if row.stage == stage]
    cases = {row.case for row in report.parity.rows if row.stage == "pytorch"}
    assert {row.case for row in rows if row.status == "ok"} == cases, [row for row in rows if row.status != "ok"]
    worst = report.parity.worst(stage)
    record_property("error/budget", worst.ratio if worst else None)
    record_property("fused", [k.fused for e in report.engines for k in e.attentions.values()])
