"""What can be judged and how it is said: kinds of candidates, refused requests, outputs of other kinds, reports."""

import json
import subprocess
import sys

import numpy as np
import onnx
import parity_blocks as blocks
import pytest
import torch
from parity_blocks import BY_NAME, runner, stages, statuses
from torch import nn
from torch.nn import functional as F

from engines.errors import BackendMissingError
from export.errors import UsageError
from export.parity import NotRun, ParityCase, ParityReport, ParityRow, check
from export.parity.result import table


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


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_fast_path_of_multi_head_attention_is_no_truth_of_its_own():
    """It gives NaN in a row that sees no key, where the steps it stands for, and the float64 run, give 0."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1] = True
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    case = ParityCase("row", {"src": x, "src_key_padding_mask": padding})
    fast = torch.backends.mha.get_fastpath_enabled()
    assert fast
    report = stages(encoder, {}, [case], "fp16")
    assert statuses(report, "pytorch") == {"ok"}, table(report.rows)
    assert torch.backends.mha.get_fastpath_enabled() == fast
