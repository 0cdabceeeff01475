"""`build` and `check` end to end on small models: artifacts, verdicts, reuse, and what a broken folder is called."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import small_models

from engines.gpus import gpus
from export import build, cli
from export.spec import read_toml

ROOT = Path(__file__).parents[1]
SHAPES = "batch=1:2:3,length=1:6:9"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.attention("float16", kept=True), tmp_path_factory.mktemp("m") / "net.onnx")


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with engines for SM 89 and 120, built through the command line."""
    out = tmp_path_factory.mktemp("o") / "out"
    words = ["build", str(model), "-o", str(out), "--target", "tensorrt-rtx", "--sm", "89,120", "--shapes", SHAPES]
    assert cli.main(words) == 0
    return out


def copied(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place / "copy")
    return place / "copy"


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_folder_holds_every_artifact_and_nothing_else(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == [
        ".artifact.json", "engine.json", "fused.onnx", "layers.json", "lowered.tensorrt-rtx.onnx", "model.120.engine",
        "model.89.engine", "model.onnx", "pictures.json", "report.html", "report.json", "spec.toml",
    ]  # fmt: skip
    assert sorted(path.name for path in built.parent.iterdir()) == ["out"], "the staged folder is gone"


def test_engine_json_signs_every_file(built: Path) -> None:
    from export.digest import of_file

    record = json.loads((built / "engine.json").read_text())
    assert set(record["files"]) == {path.name for path in built.iterdir()} - {
        ".artifact.json",
        "engine.json",
        "report.html",  # a view, which may be made again
    }
    assert all(of_file(built / name) == digest for name, digest in record["files"].items())
    assert {(e["sm"], e["file"]) for e in record["engines"]} == {(89, "model.89.engine"), (120, "model.120.engine")}
    assert record["profile"] == {"batch": [1, 2, 3], "length": [1, 6, 9]}
    assert [t["name"] for t in record["inputs"]] == ["x"]
    assert record["dtype"] == "fp16"
    assert record["parts"]["tensorrt-rtx"]


def test_the_report_has_every_stage_and_what_was_not_run(built: Path) -> None:
    content = report(built)
    assert content["passed"] is True
    stages = {row["stage"]: set() for row in content["parity"]["rows"]}
    for row in content["parity"]["rows"]:
        stages[row["stage"]].add(row["status"])
    assert list(stages) == ["exported", "fused", "lowered", "engine-sm89", "engine-sm120"]
    assert stages["exported"] == stages["fused"] == stages["lowered"] == {"ok"}
    if not gpus().found:
        assert stages["engine-sm89"] == stages["engine-sm120"] == {"not run"}
        assert content["not_run"] == [f"engine-sm89, engine-sm120: {content['parity']['rows'][3]['reason']}"]
    assert content["summary"] == {"found": 2, "fused": 1, "kept": 1, "already": 0}
    assert "itself in float64" in content["truth"]


def test_every_engine_says_what_each_attention_became(built: Path) -> None:
    layers = json.loads((built / "layers.json").read_text())["engines"]
    assert [engine["sm"] for engine in layers] == [89, 120]
    for engine in layers:
        assert engine["layers"]
        by_name = {name: choice["fused"] for name, choice in engine["attentions"].items()}
        assert any(name.startswith("Softmax_p/Attention") for name in by_name)
        assert all(choice["why"] for choice in engine["attentions"].values())
    for row, engine in zip(report(built)["engines"], layers, strict=True):
        assert {n: k["fused"] for n, k in row["attentions"].items()} == {
            n: k["fused"] for n, k in engine["attentions"].items()
        }


def test_the_spec_in_the_folder_builds_the_same_folder_again(built: Path, capsys) -> None:
    spec = read_toml(built / "spec.toml")
    assert (spec.target, spec.sm, spec.dtype) == ("tensorrt-rtx", (89, 120), "fp16")
    stamp = (built / "engine.json").stat().st_mtime_ns
    assert cli.main(["build", "--config", str(built / "spec.toml")]) == 0
    out, err = capsys.readouterr()
    assert "hit: " in err
    assert "up to date" in err
    assert out.splitlines()[-1] == "PASSED"
    assert (built / "engine.json").stat().st_mtime_ns == stamp


def test_stdout_is_the_result_and_stderr_the_steps(model: Path, tmp_path: Path, capsys) -> None:
    words = ["build", str(model), "-o", str(tmp_path / "o"), "--target", "ort", "--shapes", SHAPES]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in err.splitlines()] == [
        "cache",
        "source",
        "capture",
        "fuse",
        "lower",
        "parity",
        "range",
    ]
    assert "kept Softmax_t: K" in out
    assert "\x1b" not in err + out
    assert cli.main([*words, "-q", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["reused"] is True


def test_a_miss_says_what_moved(model: Path, tmp_path: Path, capsys) -> None:
    words = ["build", str(model), "-o", str(tmp_path / "o"), "--target", "ort", "--shapes", SHAPES]
    cli.main(words)
    capsys.readouterr()
    cli.main([*words, "--seed", "1"])
    assert "is from another build: seed was 0, is 1" in capsys.readouterr().err
    (tmp_path / "o" / "fused.onnx").write_bytes(b"x")
    cli.main([*words, "--seed", "1"])
    assert "fused.onnx is not the file that the build wrote" in capsys.readouterr().err
    cli.main([*words, "--seed", "1", "--force"])
    assert "cache" not in capsys.readouterr().err


def test_shapes_given_again_are_a_further_profile(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "o"
    words = ["build", str(model), "-o", str(out), "--shapes", SHAPES, "--shapes", "length=1"]
    assert cli.main([*words, "--target", "tensorrt-rtx", "--sm", "89"]) == 0
    dims = [{"batch": [1, 2, 3], "length": [1, 6, 9]}, {"batch": [1, 2, 3], "length": [1, 1, 1]}]
    (engine,) = json.loads((out / "engine.json").read_text())["engines"]
    assert [each["dims"] for each in engine["profiles"]] == report(out)["profiles"] == dims
    assert "further profiles (batch=1:2:3,length=1:1:1)" in " ".join(report(out)["notes"])
    assert read_toml(out / "spec.toml").further_profiles == ("length=1",)
    assert cli.main(["check", str(out)]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--target", "ort"]) == 2
    assert "--shapes given again is for engines, and --target ort builds none" in capsys.readouterr().err


def test_require_fails_the_build_and_its_folder_says_so(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "o"
    words = ["build", str(model), "-o", str(out), "--target", "ort", "--shapes", SHAPES, "--require", "all"]
    assert cli.main(words) == 1
    text = capsys.readouterr().out
    assert "failed: --require all: 1 of 2 attentions stayed decomposed." in text
    assert text.splitlines()[-1] == "FAILED"
    assert report(out)["passed"] is False
    cli.main(words)
    assert "the build in" in capsys.readouterr().err, "a failed build is not reused"


def test_check_passes_from_any_folder(built: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", str(built)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "PASSED"
    assert "files     10 intact" in err
    assert cli.main(["check", str(built), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_check_finds_a_changed_engine(built: Path, tmp_path: Path, capsys) -> None:
    folder = copied(built, tmp_path)
    with open(folder / "model.89.engine", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert cli.main(["check", str(folder)]) == 1
    assert "failed: model.89.engine is not the file that the build wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("report.json", '"max_error": ', '"max_error": 1'), ("engine.json", '"opset": ', '"opset": 1')],
)
def test_check_finds_an_edited_record(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str
) -> None:
    folder = copied(built, tmp_path)
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(old, new, 1))
    assert (folder / name).read_text() != text
    assert cli.main(["check", str(folder)]) == 1
    assert f"failed: {name} is not " in capsys.readouterr().out


def test_check_finds_a_graph_that_computes_something_else(built: Path, tmp_path: Path, capsys) -> None:
    folder = copied(built, tmp_path)
    fused = onnx.load(folder / "fused.onnx")
    (node,) = [node for node in fused.graph.node if node.op_type == "Attention"]
    next(a for a in node.attribute if a.name == "scale").f *= 1.5
    onnx.save(fused, folder / "fused.onnx")
    record = json.loads((folder / "engine.json").read_text())
    from export.digest import of_file
    from export.report.folder import seal

    record["files"]["fused.onnx"] = of_file(folder / "fused.onnx")
    (folder / "engine.json").write_text(json.dumps({**record, "sha256": seal(record)}))
    assert cli.main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "failed: fused, case typical:" in out
    assert "failed: lowered" not in out


def test_check_without_the_source_judges_by_the_exported_model(model: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "net.onnx"
    shutil.copy(model, source)
    build(str(source), out=str(tmp_path / "o"), target="ort", shapes={"batch": (1, 2, 3), "length": (1, 6, 9)})
    source.unlink()
    assert cli.main(["check", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "Judged by the folder's own model.onnx instead." in out
    shutil.copy(small_models.save(small_models.attention("float16"), tmp_path / "other.onnx"), source)
    assert cli.main(["check", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "has changed since the build (source file changed)" in out
    assert "no PyTorch source was given" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_build_leaves_the_old_folder(model: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "o"
    words = ["build", str(model), "-o", str(out), "--target", "ort", "--shapes", SHAPES]
    assert cli.main(words) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    process = subprocess.Popen(
        [sys.executable, "-m", "export", *words, "--force"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:  # killed in the middle: models are written, nothing is judged yet
        if line.startswith("lower"):
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (130, 143, -signal.SIGKILL)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    if number != signal.SIGKILL:
        assert [path.name for path in tmp_path.iterdir()] == ["o"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--force"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["o"], "the next build sweeps what the killed one left"


def test_a_factory_by_path_with_every_stage_from_pytorch_on(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text(small_models.FACTORY)
    words = ["build", "own_net.py:make", "--target", "ort", "--dtype", "fp32", "--require", "1", "--shapes", SHAPES]
    assert cli.main(words) == 0
    folder = Path("out/own_net.make")
    content = report(folder)
    stages = list(dict.fromkeys(row["stage"] for row in content["parity"]["rows"]))
    assert stages == ["pytorch", "exported", "fused", "lowered"]
    assert all(row["status"] == "ok" for row in content["parity"]["rows"])
    assert content["attentions"][0]["source"]
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "hit: " in capsys.readouterr().err
    assert cli.main(["check", str(folder)]) == 0
    assert "PyTorch, float64" in capsys.readouterr().out
    Path("own_net.py").write_text(small_models.FACTORY.replace("** -0.5", "** -0.25"))
    assert cli.main(words) == 0
    assert "code changed" in capsys.readouterr().err


def test_a_warning_of_the_export_is_noted_once(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "(torch.randn(2, 7, 16),), {'x': {0: 'batch', 1: 'length', 2: torch.export.Dim.AUTO}}"
    Path("noted_net.py").write_text(small_models.FACTORY.replace("(torch.randn(2, 7, 16),)", text))
    content = build("noted_net.py:make", target="onnx", shapes={"batch": 2, "length": (1, 6, 9)}).as_json()
    assert len(content["notes"]) == len(set(content["notes"]))
    assert any("stays fixed" in note for note in content["notes"])


def test_the_report_of_the_python_call_is_the_one_in_the_folder(model: Path, tmp_path: Path) -> None:
    started = time.time()
    result = build(str(model), out=str(tmp_path / "o"), target="onnx", shapes={"batch": 2, "length": (1, 6, 9)})
    assert result.passed
    assert not result.reused
    assert result.as_json() == report(tmp_path / "o")
    assert result.profile == {"batch": (2, 2, 2), "length": (1, 6, 9)}
    assert (tmp_path / "o" / "engine.json").stat().st_mtime >= started - 1
    assert build(str(model), out=str(tmp_path / "o"), target="onnx", shapes=dict(result.spec["shapes"])).reused


def test_a_mask_that_onnx_runtime_does_not_take_is_judged_all_the_same(tmp_path: Path) -> None:
    # ONNX lets the mask broadcast over queries; ONNX Runtime's CPU Attention does not.
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g\n'
        "(float[batch, 2, length, 8] q, float[batch, 2, length, 8] k, bool[batch, 1, 1, length] mask)"
        " => (float[batch, 2, length, 8] y) { y = Attention(q, k, k, mask) }"
    )
    path = small_models.save(model, tmp_path / "open.onnx")
    result = build(str(path), out=str(tmp_path / "o"), target="ort", shapes={"batch": (1, 2, 3), "length": (1, 6, 9)})
    assert {row.stage: row.status for row in result.parity.rows} == {"exported": "ok", "fused": "ok", "lowered": "ok"}
    assert result.attentions[0].status == "already"
