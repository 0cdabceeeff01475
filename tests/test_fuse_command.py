"""`fuse` and `inspect`: the file, the report's schema, `--require`, and what must not be touched or imported."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import small_models

from export import cli

ROW = {
    "name", "status", "code", "reason", "op", "heads", "kv_heads", "head_size", "scale", "softcap", "mask", "rope",
    "source", "verify",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.attention(kept=True), tmp_path_factory.mktemp("m") / "in.onnx")


def attention_ops(path: Path) -> int:
    return sum(node.op_type == "Attention" for node in onnx.load(path).graph.node)


def test_writes_the_model_and_the_report(model: Path, tmp_path: Path, capsys) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    before = model.read_bytes()
    assert cli.main(["fuse", str(model), "-o", str(out), "--report", str(report)]) == 0
    assert model.read_bytes() == before
    assert attention_ops(out) == 1
    rows = json.loads(report.read_text())
    assert set(rows) == {"schema", "attentions", "summary", "rotations"}
    assert rows["schema"] == 1
    assert rows["summary"] == {"found": 2, "fused": 1, "kept": 1, "already": 0}
    assert all(set(row) >= ROW for row in rows["attentions"])
    fused, kept = rows["attentions"]
    assert (fused["status"], fused["op"], fused["heads"], fused["head_size"]) == ("fused", "ai.onnx::Attention", 2, 8)
    assert set(fused["verify"]) == {"max_error", "budget", "cases"}
    assert fused["verify"]["max_error"] <= fused["verify"]["budget"]
    assert (kept["status"], kept["verify"]) == ("kept", None)
    assert "Softmax_t" in kept["reason"]
    text = capsys.readouterr().out
    assert "2 found: 1 fused, 1 kept, 0 already one op." in text
    assert f"kept Softmax_t: {kept['code']}: {kept['reason']}" in text
    assert text.splitlines()[-1] == "PASSED"


def test_json_on_stdout_is_the_report(model: Path, tmp_path: Path, capsys) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    cli.main(["fuse", str(model), "-o", str(out), "--report", str(report), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(report.read_text())


@pytest.mark.parametrize(("require", "code"), [("1", 0), ("2", 1), ("all", 1)])
def test_require_decides_the_exit_code_and_the_model_is_written_either_way(
    model: Path, tmp_path: Path, capsys, require: str, code: int
) -> None:
    out = tmp_path / "out.onnx"
    assert cli.main(["fuse", str(model), "-o", str(out), "--require", require]) == code
    assert attention_ops(out) == 1
    written = capsys.readouterr()
    assert written.out.splitlines()[-1] == ("FAILED" if code else "PASSED")
    assert (f"--require {require}: " in written.err) == bool(code)


def test_all_is_met_when_all_are_fused_and_not_by_a_graph_without_attention(tmp_path: Path, capsys) -> None:
    fusable = small_models.save(small_models.attention(), tmp_path / "a.onnx")
    assert cli.main(["fuse", str(fusable), "-o", str(tmp_path / "o.onnx"), "--require", "all"]) == 0
    # What came out is one op already, so a second run has nothing to do and still meets "all".
    assert cli.main(["fuse", str(tmp_path / "o.onnx"), "-o", str(tmp_path / "o2.onnx"), "--require", "all"]) == 0
    assert "1 already one op" in capsys.readouterr().out
    empty = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    )
    path = small_models.save(empty, tmp_path / "e.onnx")
    assert cli.main(["fuse", str(path), "-o", str(tmp_path / "o3.onnx"), "--require", "all"]) == 1
    assert "no attention was found" in capsys.readouterr().err
    assert (tmp_path / "o3.onnx").exists()


def test_inspect_prints_the_same_and_writes_nothing(model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", str(model)]) == 0
    text = capsys.readouterr().out
    assert "2 found: 1 fused, 1 kept" in text
    assert "PASSED" not in text
    assert cli.main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["fused"] == 1
    assert list(tmp_path.iterdir()) == []


def test_no_verify_says_not_run(model: Path, tmp_path: Path, capsys) -> None:
    cli.main(["fuse", str(model), "-o", str(tmp_path / "o.onnx"), "--no-verify", "--report", str(tmp_path / "r.json")])
    assert "NOT RUN" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["attentions"][0]["verify"] is None


@pytest.mark.parametrize("target", ["onnx", "ort", "tensorrt-rtx", "tensorrt"])
def test_every_target_writes_a_model(model: Path, tmp_path: Path, target: str) -> None:
    out = tmp_path / "o.onnx"
    assert cli.main(["fuse", str(model), "-o", str(out), "--target", target, "--no-verify"]) == 0
    assert attention_ops(out) == 1


def test_fuse_and_inspect_never_import_torch(model: Path, tmp_path: Path) -> None:
    for words in (["inspect", str(model)], ["fuse", str(model), "-o", str(tmp_path / "o.onnx"), "--target", "ort"]):
        code = f"import sys; from export.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        assert done.returncode == 0, done.stderr


def test_python_api_takes_a_path_or_a_model(model: Path, tmp_path: Path) -> None:
    from export import fuse, inspect

    out = tmp_path / "o.onnx"
    result = fuse(model, out)
    assert (result.summary.fused, result.summary.kept, attention_ops(out)) == (1, 1, 1)
    assert result.as_json()["summary"]["fused"] == 1
    assert fuse(onnx.load(model)).summary == result.summary
    assert [row.status for row in inspect(model)] == ["fused", "kept"]


def test_what_fuse_writes_by_default_runs_on_onnx_runtime(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    import onnxruntime

    from export import fuse

    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[B, 2, S, 8] q, float[B, 2, 8, S] k, float[B, 2, S, 8] v, bool[B, 1, 1, S] keep)
            => (float[B, 2, S, 8] y) {
            low = Constant<value_float: float = -inf>()
            s = MatMul(q, k)
            m = Where(keep, s, low)
            p = Softmax<axis: int = -1>(m)
            y = MatMul(p, v)
        }
    """
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(onnx.parser.parse_model(text), source)
    fused = fuse(source, out)
    assert fused.summary.fused == 1
    keep = np.array([[[[True, True, False]]], [[[True, False, False]]]])
    feeds = {"q": np.ones((2, 2, 3, 8), np.float32), "k": np.ones((2, 2, 8, 3), np.float32), "keep": keep}
    feeds["v"] = np.random.default_rng(0).standard_normal((2, 2, 3, 8)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for p in (source, out)
    ]
    assert np.abs(results[0] - results[1]).max() < 1e-6
