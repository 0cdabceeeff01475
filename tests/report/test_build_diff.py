"""Two builds side by side: what differs is told, what was lost is marked, and a lock makes a loss exit 1."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_terminal import FUSED, KEPT, REPORT

from export import artifact_folder, build_diff, cli
from export.parity import ParityReport
from export.report import folder, record

LOST = replace(KEPT, name="attn", code="K105", reason="Its mask is not proved.")
ENGINE = REPORT.engines[0]
KERNEL = ENGINE.attentions["attn"]


def written(path: Path, report: record.Report, **versions: str) -> Path:
    """A folder as a build leaves it, as far as `diff` reads it."""
    path.mkdir()
    (path / "fused.onnx").write_bytes(b"x" * (100 + len(versions)))
    (path / folder.REPORT).write_text(json.dumps(report.as_json()))
    parts = {"torch": "2.13.0", "code": "a" * 64} | versions
    (path / "engine.json").write_text(json.dumps({"files": {"fused.onnx": ""}, "engines": [], "parts": parts}))
    return path


def engine(**changes) -> tuple[record.Engine, ...]:
    kernel = replace(KERNEL, **changes)
    return (replace(ENGINE, attentions={**ENGINE.attentions, "attn": kernel}),)


def changes(old: Path, new: Path) -> dict[tuple[str, str], build_diff.Change]:
    found = build_diff.compare(artifact_folder.read(old), artifact_folder.read(new))
    return {(c.section, c.what): c for c in found.changes}


def test_equal_builds_differ_in_nothing(tmp_path, capsys) -> None:
    old, new = written(tmp_path / "old", REPORT), written(tmp_path / "new", REPORT)
    assert changes(old, new) == {}
    assert cli.main(["diff", str(old), str(new)]) == 0
    assert "They are equal" in capsys.readouterr().out


def test_every_section_tells_its_change(tmp_path) -> None:
    passing = replace(REPORT, parity=ParityReport(REPORT.parity.rows[:3]), failures=())
    old = written(tmp_path / "old", passing)
    after = replace(REPORT, attentions=(LOST, KEPT), engines=engine(fused=False, achieved="fp32"), opset=24)
    new = written(tmp_path / "new", after, torch="2.14.0", code="b" * 64)
    for place, time in ((old, 1.5), (new, 2.5)):
        kept = {"provider": "cpu", "latency": {"repeat": 9, "p50_ms": time, "p90_ms": 3.0}}
        (place / "run.cpu.json").write_text(json.dumps(kept))
    found = changes(old, new)
    told = {key: (c.old, c.new, c.worse) for key, c in found.items()}
    assert told[("verdict", "build")] == ("PASSED", "FAILED", True)
    assert told[("fusion", "fused")] == (1, 0, False)
    assert told[("fusion", "attn")] == ("fused F001 ai.onnx::Attention, mask bool, rope qk", "kept K105 Softmax", True)
    assert found[("fusion", "attn")].why == "K105: Its mask is not proved."
    assert told[("error", "fused")] == (0.5, "FAILED", True)
    assert told[("latency", "cpu, median ms")] == (1.5, 2.5, False)
    assert told[("engine", "SM 89 attn")] == ("fused: mha", "decomposed: mha", True)
    assert told[("precision", "SM 89 attn")] == ("fp16", "fp32", True)
    assert told[("version", "opset")] == ("23", "24", False)
    assert told[("version", "torch")] == ("2.13.0", "2.14.0", False)
    assert told[("version", "code")] == ("a" * 12, "b" * 12, False)
    assert told[("size", "fused.onnx")] == (100, 102, False)
    assert ("version", "builder") not in told


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (replace(REPORT, attentions=(LOST, KEPT)), ("graph", "K105", "Its mask is not proved.")),
        (
            replace(REPORT, attentions=(replace(FUSED, name="other"), KEPT)),
            ("graph", "", "No attention of this name is in the graph; it has other, softmax_1."),
        ),
        (replace(REPORT, engines=engine(fused=False, why="Two GEMMs.")), ("sm89", "", "Two GEMMs.")),
    ],
    ids=["kept", "gone", "kernel"],
)
def test_a_lost_fusion_fails_the_lock(tmp_path, capsys, after: record.Report, words: tuple[str, str, str]) -> None:
    old, new = written(tmp_path / "old", REPORT), written(tmp_path / "new", after)
    lock = tmp_path / "fusion.lock"
    command = ["diff", str(old), str(new), "--lock", str(lock), "--json"]
    assert cli.main(["diff", str(old), str(old), "--lock", str(lock)]) == 0  # the first time writes it
    assert json.loads(lock.read_text())["attentions"] == {"attn": {"op": "ai.onnx::Attention", "kernels": ["sm89"]}}
    capsys.readouterr()
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)["lock"]
    assert told["written"] is False
    assert told["lost"] == [dict(zip(("attention", "where", "code", "reason"), ("attn", *words), strict=True))]
    assert "attn is no longer fused in" in err and words[2] in err
    assert cli.main(command[:-1]) == 1
    out, err = capsys.readouterr()
    assert out.count("attn is no longer fused in") == 1 and "no longer fused" not in err
    assert cli.main([*command, "--write-lock"]) == 0  # accepted
    assert cli.main(command) == 0


def test_a_new_fusion_and_an_engine_that_was_not_built_are_no_loss(tmp_path) -> None:
    old = written(tmp_path / "old", REPORT)
    new = written(tmp_path / "new", replace(REPORT, attentions=(FUSED, replace(FUSED, name="two")), engines=()))
    lock = tmp_path / "fusion.lock"
    assert cli.main(["diff", str(old), str(new), "--lock", str(lock)]) == 0
    assert changes(old, new)[("engine", "SM 89")].worse


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--write-lock"], "--lock names"),
        (["--lock", "damaged"], "is not a fusion lock"),
    ],
)
def test_wrong_use_is_a_sentence(tmp_path, capsys, monkeypatch, words: list[str], text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").write_text("{}")
    old = written(tmp_path / "old", REPORT)
    assert cli.main(["diff", str(old), str(old), *words]) == 2
    assert text in capsys.readouterr().err
    assert cli.main(["diff", str(old), str(tmp_path)]) == 2
    assert "not an artifact folder" in capsys.readouterr().err
