"""The formats for machines: what failed, stayed or was not run is in each, whatever a model is named."""

import json
import re
from argparse import Namespace
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from test_terminal import FUSED, KEPT, REPORT

from export import cli
from export.errors import UsageError
from export.report import formats, github, junit
from export.report.results import Result, of_attentions, of_report

NASTY = 'a"b<script>&\x00\n::error::x,y:z%'


def test_junit_has_a_case_for_each_parity_case_and_each_attention() -> None:
    root = ElementTree.fromstring(junit.render(of_report(REPORT)))
    suites = {suite.get("name"): suite for suite in root}
    parity = suites["parity"]
    assert (parity.get("tests"), parity.get("failures"), parity.get("skipped")) == ("6", "1", "2")
    (failed,) = [case for case in parity if case.find("failure") is not None]
    assert (failed.get("classname"), failed.get("name")) == ("parity.fused", "odd")
    assert failed.find("failure").get("message") == "3 elements lie outside."
    kept = suites["attention"].find("testcase[@name='softmax_1']")
    assert kept.find("skipped").get("message") == "K203: Not over the keys."
    assert (kept.get("file"), kept.get("line")) == ("net.py", "12")
    assert "verdict" not in suites, "the parity failure is not counted twice"


def test_what_fails_outside_of_parity_is_a_case_of_its_own() -> None:
    report = replace(REPORT, failures=(*REPORT.failures, "--require all: 1 of 2 attentions stayed decomposed."))
    root = ElementTree.fromstring(junit.render(of_report(report)))
    assert root.find("testsuite[@name='verdict']/testcase/failure") is not None
    assert int(root.get("failures")) == 2


def test_a_required_attention_that_stays_has_failed() -> None:
    (result,) = of_attentions([KEPT], required=True)
    assert result.status == "fail"


def test_github_marks_the_users_line() -> None:
    lines = github.render(of_report(REPORT), passed=False).splitlines()
    assert "::error title=fused odd::3 elements lie outside." in lines
    assert "::warning file=net.py,line=12,title=softmax_1::K203: Not over the keys." in lines
    assert "::notice title=engine-sm89 NOT RUN (2 cases)::no GPU" in lines
    assert lines[-1] == "FAILED"


def test_names_of_a_model_break_neither_format() -> None:
    result = Result("parity", NASTY, NASTY, "fail", NASTY, f"{NASTY}:3 in f")
    case = ElementTree.fromstring(junit.render([result])).find("testsuite/testcase")
    assert case.get("name") == NASTY.replace("\x00", "\ufffd")
    line, verdict = github.render([result], passed=False).splitlines()
    assert verdict == "FAILED"
    properties, message = re.fullmatch(r"::error (.*?)::(.*)", line).groups()
    assert all(re.fullmatch(r"\w+=[^,:\n]*", each) for each in properties.split(","))
    assert message.startswith('a"b<script>&\x00%0A::error::x,y:z%25')


@pytest.mark.parametrize("form", formats.FORMATS)
def test_each_format_is_written_and_quiet_silences_the_human_one_only(form: str, capsys) -> None:
    for quiet in (False, True):
        formats.write_report(Namespace(quiet=quiet, json=False), form, REPORT, reused=False)
        out = capsys.readouterr().out
        assert bool(out) == (form != "human" or not quiet)
    if form == "json":
        assert json.loads(out)["passed"] is False


def test_two_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="two formats"):
        formats.chosen(Namespace(json=True), "junit")


def test_an_error_is_told_in_the_format_asked_for(capsys) -> None:
    assert cli.main(["check", "/nowhere", "--format", "junit"]) == 2
    assert ElementTree.fromstring(capsys.readouterr().out).get("failures") == "1"
    assert cli.main(["check", "/nowhere", "--format", "github"]) == 2
    assert capsys.readouterr().out.startswith("::error title=UsageError::There is no /nowhere")


def test_a_terminal_gets_one_table_and_the_verdict_last(capsys, monkeypatch) -> None:
    from export.report import console

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    console.write(REPORT)
    lines = capsys.readouterr().out.splitlines()
    header = next(line.split() for line in lines if "block" in line)
    assert header[:4] == ["block", "form", "mask", "rope"]
    assert header[-6:] == ["SM", "89", "error", "/", "budget", "latency"]
    row = next(line.split() for line in lines if line.strip().startswith("attn "))
    assert row[:7] == ["attn", "net.py:make", "bool", "qk", "8/2", "x", "64"]
    assert row[-1] == "-", "nothing was measured"
    said = " ".join(" ".join(lines).split())
    assert "latency: NOT RUN; python -m export bench net.py:make -o out/net/bench.json" in said
    assert "2250.00 (fused, odd)" in lines[-2]
    assert lines[-1] == "FAILED"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_narrow_terminal_loses_no_word(columns: int, capsys, monkeypatch) -> None:
    from export.report import console

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    console.write(replace(REPORT, attentions=(replace(FUSED, block="layers.0.attention"), KEPT)))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    words = ("layers.0.attention", "softmax_1", "8/2 x 64", "decomposed", "Attention", "(K203)", "1.00e-07 /")
    for word in words:
        assert any(word in line for line in lines), (word, lines)
    assert lines[-1] == "FAILED"


def test_each_node_of_a_block_says_what_it_was_read_as() -> None:
    import small_models

    from export import fusing

    (row,) = fusing.inspect(small_models.attention("float32"), verify=False)
    kinds = [read.kind for read in row.trail]
    assert kinds[0] == "scores" and kinds[-2:] == ["softmax", "values"]
    assert [read.op for read in row.trail][-1] == "MatMul"
