"""The harness on hand-built graphs: right ones pass, every mutant fails, and nothing that did not run passes."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import mutants
import numpy as np
import onnx
import parity_blocks as blocks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engines.errors import BackendMissingError
from engines.ort_runner import OrtRunner
from export.errors import UsageError
from export.parity import NotRun, ParityCase, ParityReport, ParityRow, check, check_stages
from export.parity.result import table

BY_NAME = {spec.name: spec for spec in blocks.SPECS}


def runner(model: onnx.ModelProto) -> OrtRunner:
    return OrtRunner(model.SerializeToString(), threads=1)


def stages(module, candidates, cases, dtype, **options):
    source = SimpleNamespace(module=module, form=None)
    return check_stages(source, None, candidates, dtype=dtype, cases=cases, **options)


def statuses(report: ParityReport, stage: str) -> set[str]:
    return {row.status for row in report.rows if row.stage == stage}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("spec", blocks.SPECS, ids=lambda s: s.name)
def test_right_graphs_pass_and_every_mutant_fails(spec, dtype):
    module = blocks.block(spec)
    policy = "zero" if spec.mask != "none" and not np.isfinite(spec.fill) else "keep"
    for three_d in (False, True):
        right = blocks.graph(module, dtype, three_d=three_d)
        wrong = mutants.mutants(right)
        assert len(wrong) >= 3
        candidates = {"fused": runner(right)} | {name: runner(model) for name, model in wrong.items()}
        report = stages(module, candidates, blocks.cases(spec), dtype, masked_rows=policy)
        assert statuses(report, "pytorch") == {"ok"}, table(report.rows)
        assert statuses(report, "fused") == {"ok"}, table(report.failures)
        passed = [name for name in wrong if "fail" not in statuses(report, name)]
        assert not passed, f"undetected: {passed}"


def test_every_mutant_is_made_of_some_block():
    made = set()
    for spec in blocks.SPECS:
        made |= set(mutants.mutants(blocks.graph(blocks.block(spec), "fp32")))
    assert made == set(mutants.MUTANTS)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_no_false_alarm_over_many_seeds(dtype):
    worst = 0.0
    for seed in range(3):
        for spec in blocks.SPECS:
            module = blocks.block(spec, seed)
            candidates = {}
            if dtype != "bf16":
                candidates["fused"] = runner(blocks.graph(module, dtype))
            report = stages(module, candidates, blocks.cases(spec, seed), dtype)
            failures = [r for r in report.failures if r.case != "fully-masked-row"]
            assert not failures, table(failures)
            worst = max(worst, *(r.ratio for r in report.rows if r.status == "ok"))
    assert 0.2 < worst <= 0.8, "the budget is far too wide, or nearly too narrow"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_nan_of_a_row_without_keys_may_become_zero_weights_after_fusing_only(dtype):
    spec = BY_NAME["bool-mask"]
    module = blocks.block(spec)
    graph = runner(blocks.graph(module, dtype))
    cases = [c for c in blocks.cases(spec) if c.name == "fully-masked-row"]
    kept = stages(module, {"exported": graph, "fused": graph}, cases, dtype)
    rows = {row.stage: row for row in kept.rows}
    assert rows["exported"].status == "fail"
    assert "NaN and Inf of output are in other places" in rows["exported"].reason
    assert "see no key" in rows["exported"].reason
    assert rows["fused"].status == "ok"
    assert "computed with zero weights" in rows["fused"].reason
    zeroed = stages(module, {"fused": graph}, cases, dtype, masked_rows="zero")
    assert statuses(zeroed, "fused") == {"ok"}
    own = stages(module, {"fused": module}, cases, dtype, masked_rows="zero")
    assert statuses(own, "fused") == {"fail"}, "NaN is not the declared zero"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_mean_of_v_is_kept_and_not_zero(dtype):
    spec = BY_NAME["finite-fill"]
    module = blocks.block(spec)
    cases = [c for c in blocks.cases(spec) if c.name == "fully-masked-row"]
    zeroing = blocks.graph(blocks.block(dataclasses.replace(spec, fill=float("-inf"))), dtype)
    candidates = {"right": runner(blocks.graph(module, dtype)), "zeroing": runner(zeroing)}
    kept = stages(module, candidates, cases, dtype)
    assert (statuses(kept, "right"), statuses(kept, "zeroing")) == ({"ok"}, {"fail"})
    zero = stages(module, candidates, cases, dtype, masked_rows="zero")
    assert (statuses(zero, "right"), statuses(zero, "zeroing")) == ({"fail"}, {"ok"})


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_an_added_fill_swallows_the_scores_and_zero_is_still_wrong(dtype):
    """Float64 keeps a score beside -1e9 and the dtype does not: both answers are right there, 0 is not."""

    def attend(q, k, v, mask):
        fill = {torch.float64: -1e9, torch.float32: -1e9}.get(q.dtype, -3e4)
        scores = q @ k.mT * 0.25 + mask.to(q.dtype) * fill
        return torch.softmax(scores, dim=-1) @ v

    def zeroing(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask == 0)

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 16, generator=generator) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.int64)
    mask[1, :, 3] = 1
    case = ParityCase("row", {"q": q, "k": k, "v": v, "mask": mask})
    assert check(attend, attend, [case], dtype).passed
    report = check(zeroing, attend, [case], dtype)
    assert not report.passed
    assert "All of them are in rows that see no key" in report.rows[0].reason
    assert check(zeroing, attend, [case], dtype, masked_rows="zero").passed


def test_rope_angles_rounded_to_half_precision_are_seen_at_long_positions():
    angles = torch.arange(600)[:, None] * 10000.0 ** (-torch.arange(8) / 8)

    def rotated(x, halved):
        positions = torch.arange(x.shape[-2])[:, None]
        frequencies = 10000.0 ** (-torch.arange(8) / 8)
        turned = (positions.half() * frequencies.half()).float() if halved else angles[: x.shape[-2]]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        a, b = wide.chunk(2, dim=-1)
        cos, sin = turned.cos(), turned.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    def attend(q, k, v, halved=False):
        return F.scaled_dot_product_attention(rotated(q, halved), rotated(k, halved), v)

    def halved(q, k, v):
        return attend(q, k, v, True)

    generator = torch.Generator().manual_seed(0)
    long = tuple(torch.randn(1, 2, 600, 16, generator=generator) * 1.5 for _ in range(3))
    assert check(attend, attend, [long], "fp16").passed
    report = check(halved, attend, [long], "fp16")
    assert not report.passed
    assert report.rows[0].worst is not None


def test_overflow_to_nan_in_half_precision_fails_pytorch_itself():
    def attend(q, k, v):
        return torch.softmax(q @ k.mT, dim=-1) @ v

    loud = tuple(torch.full((1, 1, 4, 64), 60.0) for _ in range(3))
    report = stages(attend, {"fused": attend}, [ParityCase("loud", dict(zip("qkv", loud, strict=True)))], "fp16")
    assert [row.status for row in report.rows] == ["fail", "fail"]
    assert "where float64 is finite; float16 ends at 65504" in report.rows[0].reason
    alone = check(attend, attend, [loud], "fp16")
    assert "PyTorch at this dtype fails here too" in alone.rows[0].reason
    assert stages(attend, {}, [ParityCase("loud", dict(zip("qkv", loud, strict=True)))], "bf16").passed


def test_an_error_of_pytorchs_own_kernel_widens_no_other_budget():
    """A function that is wrong only where nothing watches it stands for a fused kernel with a bug."""

    def watched(x):
        return torch.utils._python_dispatch._get_current_dispatch_mode() is not None

    def buggy(x):
        return x * 1.7 if watched(x) else x * 1.7 + 0.5

    case = ParityCase("kernel", {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))})
    report = stages(buggy, {"fused": lambda x: x * 1.7, "exported": lambda x: x * 1.7 + 0.5}, [case], "fp16")
    assert [row.status for row in report.rows] == ["fail", "ok", "fail"]


def test_tf32_is_a_mode_of_its_own():
    def attend(q, k, v):
        return torch.softmax(q @ k.mT * 0.25, dim=-1) @ v

    def tf32(q, k, v):
        def cut(x):
            return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

        return cut(torch.softmax(cut(q) @ cut(k).mT * 0.25, dim=-1)) @ cut(v)

    q, k, v = (torch.randn(2, 2, 9, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    assert check(tf32, attend, [(q, k, v)], "tf32").passed
    assert not check(tf32, attend, [(q, k, v)], "fp32").passed
    assert check(attend, attend, [(q, k, v)], "fp32").passed


def test_every_kind_of_candidate_is_run(tmp_path):
    spec = BY_NAME["plain"]
    module, graph = blocks.block(spec), blocks.graph(blocks.block(spec), "fp16")
    path = tmp_path / "m.onnx"
    onnx.save(graph, path)

    class Mine:
        def run(self, feeds):
            assert feeds["x"].dtype == np.float16
            return runner(graph).run(feeds)

    cases = blocks.cases(spec)[:2]
    for candidate in (path, str(path), graph.SerializeToString(), runner(graph), Mine(), module):
        report = check(candidate, module, cases, stage="mine")
        assert report.passed, table(report.rows)
        assert [(r.case, r.stage) for r in report.rows] == [("typical", "mine"), ("one-token", "mine")]
    assert check(lambda x: module.half()(x), blocks.block(spec), cases).passed
    with pytest.raises(UsageError, match="A int cannot be checked: give a path"):
        check(3, module, cases)


def test_inputs_of_other_names_are_taken_by_position_and_missing_ones_named():
    spec = BY_NAME["plain"]
    module, graph = blocks.block(spec), blocks.graph(blocks.block(spec), "fp32")
    x = torch.randn(1, 3, 24)
    renamed = onnx.ModelProto()
    renamed.CopyFrom(graph)
    renamed.graph.input[0].name = "pixels"
    for node in renamed.graph.node:
        node.input[:] = ["pixels" if name == "x" else name for name in node.input]
    assert check(runner(renamed), module, [(x,)], "fp32").passed
    cross = blocks.graph(blocks.block(BY_NAME["cross"]), "fp32")
    report = check(runner(cross), module, [(x,)], "fp32")
    assert "The graph takes 'memory', which the case lacks; the case has x." in report.rows[0].reason
    assert not report.passed


def test_a_graph_that_keeps_float32_inputs_and_outputs_is_fed_and_its_outputs_type_is_named():
    spec = BY_NAME["plain"]
    module = blocks.block(spec)
    report = check(runner(blocks.graph(module, "fp32")), module, blocks.cases(spec)[:1], "fp16")
    assert report.rows[0].reason == "output is float32; PyTorch returns float16."


def test_another_number_of_outputs_is_named():
    report = check(lambda x: (x, x), lambda x: x, [(torch.ones(3),)], "fp32")
    assert report.rows[0].reason == "It returns 2 outputs (output_0, output_1); PyTorch returns 1."
    assert check(lambda x: None, lambda x: None, [(torch.ones(3),)], "fp32").rows[0].status == "fail"


def test_a_candidate_that_raises_fails_and_a_missing_backend_is_not_run():
    def broken(x):
        raise ValueError("no kernel for 3 axes")

    class Absent:
        def run(self, feeds):
            raise BackendMissingError("There is no GPU here.")

    cases = [(torch.ones(3),)]
    failed = check(broken, torch.sin, cases, "fp32").rows[0]
    assert (failed.status, failed.reason) == ("fail", "It did not run: ValueError: no kernel for 3 axes")
    missing = check(Absent(), torch.sin, cases, "fp32")
    assert (missing.rows[0].status, missing.rows[0].reason) == ("not run", "There is no GPU here.")
    assert not missing.passed
    assert missing.summary() == "0 ok, 0 failed, 1 not run"


def test_what_was_not_run_is_visible_and_no_evidence():
    spec = BY_NAME["plain"]
    module, graph = blocks.block(spec), blocks.graph(blocks.block(spec), "fp32")
    report = stages(module, {"fused": runner(graph), "engine-sm89": NotRun("no GPU")}, blocks.cases(spec)[:2], "fp32")
    assert report.passed
    assert report.summary() == "4 ok, 0 failed, 2 not run"
    assert [r.reason for r in report.rows if r.stage == "engine-sm89"] == ["no GPU", "no GPU"]
    assert report.worst("engine-sm89") is None
    assert "NOT RUN" in table(report.rows)


def test_a_case_the_users_module_refuses_is_not_run_and_a_callers_own_raises():
    def picky(x):
        if x.shape[0] == 1:
            raise RuntimeError("batch must be above 1")
        return x * 2

    good, bad = ParityCase("good", {"x": torch.ones(2)}), ParityCase("bad", {"x": torch.ones(1)})
    report = stages(picky, {"fused": picky}, [good, bad], "fp32")
    assert [(r.case, r.status) for r in report.rows] == [("good", "ok")] * 2 + [("bad", "not run")] * 2
    assert "batch must be above 1" in report.rows[-1].reason
    with pytest.raises(UsageError, match="case 'bad' in fp32: RuntimeError: batch must be above 1"):
        check(picky, picky, [bad], "fp32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "no dtype 'fp8'"),
        ({"masked_rows": "mean"}, "no policy 'mean'.*keep or zero"),
        ({"draws": 0}, "0 moved runs"),
        ({"cases": []}, "no cases to check"),
        ({"cases": [()]}, "case-0 has no inputs"),
        ({"cases": [(1, 2, 3)]}, "does not fit the reference's parameters"),
    ],
)
def test_a_request_that_shows_nothing_is_refused(options, message):
    options = {"cases": [(torch.ones(2),)], "dtype": "fp32"} | options
    with pytest.raises(UsageError, match=message):
        check(lambda x: x, lambda x: x, **options)


def test_integer_outputs_must_be_equal_and_none_is_left_out():
    def right(x):
        return {"best": x.argmax(-1), "cache": None, "y": x * 2}

    def wrong(x):
        return {"best": x.argmin(-1), "cache": None, "y": x * 2}

    cases = [(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),)]
    assert check(right, right, cases, "fp32").passed
    row = check(wrong, right, cases, "fp32").rows[0]
    assert row.output == "best"
    assert "int64 must be equal" in row.reason


def test_dropout_is_off_and_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()
    assert check(module, module, [(torch.randn(4, 8),)], "fp16").passed
    assert module.training
    assert module[0].weight.dtype == torch.float32


def test_a_builtin_takes_its_inputs_by_position():
    q, k, v = (torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    sdpa = F.scaled_dot_product_attention
    assert check(lambda a, b, c: torch.softmax(a @ b.mT * 8**-0.5, -1) @ c, sdpa, [(q, k, v)], "fp16").passed
    assert not check(lambda a, b, c: torch.softmax(a @ b.mT, -1) @ c, sdpa, [(q, k, v)], "fp16").passed


def test_the_report_survives_json_with_numbers_that_json_lacks():
    rows = (
        ParityRow("a", "fused", "fail", float("inf"), 0.5, float("inf"), "y", (0, 3), float("nan"), 1.0, "bad"),
        ParityRow("b", "engine-sm89", "not run", reason="no GPU"),
    )
    report = ParityReport(rows, "bf16", "zero")
    text = json.dumps(report.as_json(), allow_nan=False)
    back = ParityReport.from_json(json.loads(text))
    assert str(back) == str(report)
    assert json.loads(text)["passed"] is False
    assert json.loads(text)["summary"] == "0 ok, 1 failed, 1 not run"
    for wrong in ({}, {"schema": 99, "rows": []}, {"schema": 1, "rows": [{"worst": 3}]}):
        with pytest.raises(UsageError, match=r"schema|parity report"):
            ParityReport.from_json(wrong)


def test_the_package_costs_nothing_to_import():
    code = (
        "import sys, export.parity, export.parity.pytest_plugin; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
