"""What the one screen says: verdicts, NOT RUN, kernels with their reasons, and nothing that was not seen."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir

from engines.achieved import Achieved
from export.fuse.rows import Attention, Verification
from export.lower import Lowered
from export.parity import ParityReport, ParityRow
from export.report import folder, record, table, terminal

ROWS = (
    ParityRow("typical", "pytorch", "ok", 1e-4, 2e-4, 0.5, "y", (0, 1), 1.0, 1.0001),
    ParityRow("odd", "pytorch", "ok", 3e-4, 4e-4, 0.75, "y", (0, 2), 1.0, 1.0003),
    ParityRow("typical", "fused", "ok", 1e-4, 2e-4, 0.5, "y", (0, 1), 1.0, 1.0001),
    ParityRow("odd", "fused", "fail", 9e-1, 4e-4, 2250.0, "y", (0, 2), 1.0, 1.9, "3 elements lie outside."),
    ParityRow("typical", "engine-sm89", "not run", reason="no GPU"),
    ParityRow("odd", "engine-sm89", "not run", reason="no GPU"),
)
FUSED = Attention(
    "attn", "fused", "F001", "One op.", "ai.onnx::Attention", 8, 2, 64, mask="bool", rope="qk",
    verify=Verification(1e-7, 1e-6, 6),
)  # fmt: skip
KEPT = Attention("softmax_1", "kept", "K203", "Not over the keys.", "Softmax", source="net.py:12")
REPORT = record.Report(
    spec={"source": "net.py:make", "target": "tensorrt-rtx", "dtype": "fp16"},
    folder=Path("out/net"),
    digest="0" * 64,
    truth="net in float64",
    opset=23,
    exporter="dynamo",
    builder="tensorrt-rtx 1.7",
    profile={"batch": (1, 2, 8)},
    attentions=(FUSED, KEPT),
    steps=(record.Step("attn", "expand mask", "it must be."),),
    engines=(
        record.Engine(
            89, "model.89.engine", 1.25, 2048, None,
            {
                "attn": record.Kernel(True, ("mha",), "One kernel.", "fp16"),
                "softmax_1": record.Kernel(False, ("a", "b"), "Two GEMMs.", "fp32", "A Cast."),
            },
            achieved=Achieved("fp32", {"fp16": 1, "fp32": 2}, {"fp16": 4, "fp32": 5}, (("out", "fp16"),)),
            memory=3 << 20,
        ),
    ),
    parity=ParityReport(ROWS),
    failures=("fused, case odd: 3 elements lie outside.",),
    notes=("a note",),
    not_run=("engine-sm89: no GPU",),
)  # fmt: skip


def cells(text: str, first: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(first))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_failing_report() -> None:
    text = terminal.render(REPORT)
    assert cells(text, "pytorch") == ["pytorch", "2/2", "1.00e-04", "odd", "3.00e-04", "0.75", "ok"]
    assert cells(text, "fused") == ["fused", "2/2", "1.00e-04", "odd", "9.00e-01", "2250.00", "FAILED"]
    assert cells(text, "engine-sm89") == ["engine-sm89", "0/2", "-", "-", "-", "-", "NOT RUN"]
    assert cells(text, "attn") == [
        "attn", "fused", "F001", "ai.onnx::Attention", "bool", "qk", "8/2 x 64", "1.00e-07 / 1.00e-06", "fused",
    ]  # fmt: skip
    assert cells(text, "softmax_1")[4:] == ["?", "?", "?/? x ?", "-", "decomposed"]
    for sentence in (
        "kept softmax_1: K203: Not over the keys. [net.py:12]",
        "2 found: 1 fused, 1 kept, 0 already one op.",
        "SM 89 softmax_1: Two GEMMs.",
        "lowered: attn: expand mask: it must be.",
        "note: a note",
        "NOT RUN: engine-sm89: no GPU",
        "failed: fused, case odd: 3 elements lie outside.",
    ):
        assert sentence in text.splitlines()
    assert cells(text, "model.89.engine") == ["model.89.engine", "1.2 s", "2.0 KiB", "-", "fp32", "3 MiB", "1 of 2"]
    assert text.splitlines()[-1] == "FAILED"


def test_attentions_that_share_a_change_share_its_line() -> None:
    steps = tuple(record.Step(f"layer_{i}", "expand mask", "it must be.") for i in range(32))
    lines = terminal.render(replace(REPORT, steps=(*steps, record.Step("attn", "decompose", "no.")))).splitlines()
    told = [line for line in lines if line.startswith("lowered")]
    assert told == ["lowered: layer_0, layer_1 and 30 more: expand mask: it must be.", "lowered: attn: decompose: no."]


def test_what_a_build_cost_is_said_of_that_build_only() -> None:
    report = replace(REPORT, seconds=12.34, memory=5 << 20)
    line = "12.3 s in all, 5 MiB of memory in this process at its peak."
    assert line in terminal.render(report).splitlines()
    assert line not in terminal.render(replace(report, reused=True))


def test_the_modules_path_is_shown_where_one_is_known() -> None:
    report = replace(REPORT, attentions=(replace(FUSED, block="layers.3.attention"), KEPT))
    assert "layers.3.attention" in cells(terminal.render(report), "attn")
    assert "block" not in terminal.render(REPORT)


def test_a_passing_report_ends_in_passed() -> None:
    assert terminal.render(replace(REPORT, failures=())).splitlines()[-1] == "PASSED"


def test_a_kernel_that_the_log_does_not_name_is_unknown_and_not_fused() -> None:
    engine = replace(REPORT.engines[0], attentions={"attn": record.Kernel(None, (), "The log lists no layers.")})
    text = terminal.render(replace(REPORT, engines=(engine,)))
    assert cells(text, "attn")[-1] == "unknown"
    assert cells(text, "softmax_1")[-1] == "unknown"
    assert "SM 89 attn: The log lists no layers." in text


def test_the_cause_of_a_written_out_attention_is_lowerings_own() -> None:
    said = "It became 2 GEMMs and a softmax kernel: the builder had no fused MHA kernel for it."
    kernels = {
        "a": SimpleNamespace(fused=False, kernels=("g",), why=said),
        "a/b": SimpleNamespace(fused=False, kernels=("h",), why=said),
        "c": SimpleNamespace(fused=True, kernels=("m",), why="One."),
    }
    engine = SimpleNamespace(sm=89, path=Path("m.engine"), seconds=1.0, size=1, scratch=None, attentions=kernels)
    engine.layers, engine.memory = (), None
    steps = [record.Step("a", "decompose", "Its scores are an output."), record.Step("c", "decompose", "No.")]
    steps.append(record.Step("a/b", "expand mask", "It must be."))
    lowered = Lowered(ir.Model(ir.Graph((), (), nodes=()), ir_version=10), tuple(steps))
    row = folder.engine(SimpleNamespace(engine=engine, hit=False), lowered, "fp16")
    why = {name: kernel.why for name, kernel in row.attentions.items()}
    assert why == {
        "a": "It became 2 GEMMs and a softmax kernel: Its scores are an output.", "a/b": said, "c": "One.",
    }  # fmt: skip


def test_fusion_that_was_not_verified_says_so() -> None:
    text = terminal.render(replace(REPORT, attentions=(replace(FUSED, verify=None),)))
    assert "NOT RUN" in cells(text, "attn")


def test_the_record_survives_json() -> None:
    import json

    data = json.loads(json.dumps(REPORT.as_json()))
    assert record.Report.from_json(data, REPORT.folder) == REPORT
    assert [row["achieved"] for row in data["attentions"]] == [{"sm89": "fp16"}, {"sm89": "fp32"}]


def test_tables_align_and_numbers_stand_right() -> None:
    text = table.render(("name", "n"), [("a", 5), ("bcd", 123), ("e", None)])
    assert text == "name    n\n----  ---\na       5\nbcd   123\ne       -\n"
    assert table.render(("name",), []) == ""
