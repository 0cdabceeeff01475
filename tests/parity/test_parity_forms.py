"""Every form, exported, fused and made runnable: right at every CPU stage, while every mutant of it fails."""

import mutants
import onnx_ir as ir
import pytest

from engines.errors import UsageError
from engines.ort_runner import OrtRunner
from export.capture import capture, load_source
from export.fuse import fuse
from export.lower import for_ort_check
from export.model.registry import form_names
from export.parity import NotRun, check_stages
from export.parity.result import table

DTYPES = ("fp32", "fp16")
SOFTMAX_FREE = {"linear-attention"}


def equals_the_original(source, mutant: str) -> bool:
    """Says whether a mutant is the same function: every batch row has one mask where no input is a mask."""
    return mutant == "mask_of_first_row" and not source.form.padding


def runner(model: ir.Model) -> OrtRunner | NotRun:
    """A session, or the reason for which lowering refuses a mutant as something runtimes misread."""
    try:
        lowered = ir.to_proto(for_ort_check(model)).SerializeToString()
    except UsageError as error:
        return NotRun(str(error))
    return OrtRunner(lowered, threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", form_names())
def test_a_form_is_right_at_every_stage_and_its_mutants_fail(name, dtype):
    source = load_source(name)
    captured = capture(source, dtype=dtype, exporter="dynamo", opset=None)
    fused = fuse(captured.model).model
    wrong = mutants.mutants(ir.to_proto(fused))
    stages = {
        "exported": OrtRunner(ir.to_proto(captured.model).SerializeToString(), threads=1),
        "fused": runner(fused),
    } | {mutant: runner(ir.from_proto(model)) for mutant, model in wrong.items()}
    report = check_stages(source, captured, stages, dtype=dtype)
    for stage in ("pytorch", "exported", "fused"):
        rows = [row for row in report.rows if row.stage == stage]
        assert all(row.status == "ok" for row in rows), table(rows)
    undetected = []
    for mutant in wrong:
        seen = {row.status for row in report.rows if row.stage == mutant}
        if seen == {"ok"} and not equals_the_original(source, mutant):
            undetected.append(mutant)
        refused = stages[mutant].reason if isinstance(stages[mutant], NotRun) else ""
        assert not refused or "runtimes read" in refused
    assert not undetected, f"{name} at {dtype}: {undetected}"
    assert len(wrong) >= (0 if name in SOFTMAX_FREE else 4)
