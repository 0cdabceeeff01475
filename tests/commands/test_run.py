"""`run`: the right file on the right provider, checked inputs, whole outputs, and an exit code for each refusal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from engines.engine_json import digest
from engines.gpus import Gpu, Gpus
from export import cli, runnable
from export.errors import BackendMissingError
from export.runnable import open_runnable

ROOT = Path(__file__).parents[2]
SCALED = """<ir_version: 9, opset_import: ["": 18]>
g (float16[batch,length,4] x, int64[batch] n) => (float16[batch,length,4] twice, int64[batch] m)
{ twice = Add(x, x)  m = Neg(n) }"""
# ONNX Runtime's CPU Attention refuses a mask of (B, 1, 1, S), which ONNX allows: such a graph must be lowered for it.
KEY_MASK = """<ir_version: 10, opset_import: ["": 23]>
g (float[batch,2,length,4] q, float[batch,2,length,4] k, float[batch,2,length,4] v, bool[batch,1,1,length] mask)
=> (float[batch,2,length,4] y) { y = Attention(q, k, v, mask) }"""


def write(path: Path, text: str) -> Path:
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "m.onnx", SCALED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact folder that was built for TensorRT-RTX."""
    out = tmp_path / "artifact"
    out.mkdir()
    for name in ("model.onnx", "fused.onnx", "lowered.tensorrt-rtx.onnx"):
        write(out / name, KEY_MASK)
    (out / "model.89.engine").write_bytes(b"plan")
    (out / "model.120.engine").write_bytes(b"plan")
    engines = [
        {
            "file": f"model.{sm}.engine",
            "sha256": digest(out / f"model.{sm}.engine"),
            "vendor": "tensorrt-rtx",
            "version": "1.7.1.116",
            "sm": sm,
            "inputs": [{"name": "q", "dtype": "float16", "shape": ["batch", 2, "length", 4]}],
            "outputs": [],
            "profile": {"dims": {"batch": [1, 3, 8], "length": [1, 5, 512]}, "inputs": {}},
        }
        for sm in (89, 120)
    ]
    profile = {"batch": [1, 3, 8], "length": [1, 5, 512]}
    (out / "engine.json").write_text(json.dumps({"schema": 1, "profile": profile, "engines": engines}))
    return out


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["run", *map(str, words)])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_inputs_in_outputs_out(model: Path, tmp_path: Path, capsys) -> None:
    x = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    np.savez(tmp_path / "x.npz", x=x, n=np.array([5, 7]))
    seen = run_json(capsys, model, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz", allow_pickle=False) as outputs:
        np.testing.assert_array_equal(outputs["twice"], 2 * x)
        assert outputs["m"].tolist() == [-5, -7]
    assert seen == {
        "schema": 1,
        "model": str(model),
        "file": str(model),
        "why": "it was named",
        "provider": "cpu",
        "fallback": [],
        "dims": {},
        "outputs": [
            {"name": "twice", "dtype": "float16", "shape": [2, 3, 4], "nonfinite": 0},
            {"name": "m", "dtype": "int64", "shape": [2], "nonfinite": 0},
        ],
        "latency": None,
        "saved": str(tmp_path / "y.npz"),
    }


def test_random_sizes_seed_and_latency(model: Path, tmp_path: Path, capsys) -> None:
    asked = (model, "--random", "--shapes", "batch=3,length=1", "--repeat", 4, "--threads", 1)
    seen = run_json(capsys, *asked, "-o", tmp_path / "a.npz")
    assert seen["dims"] == {"batch": 3, "length": 1}
    assert seen["outputs"][0]["shape"] == [3, 1, 4]
    assert seen["latency"]["repeat"] == 4
    assert 0 < seen["latency"]["p50_ms"] <= seen["latency"]["p90_ms"]
    run_json(capsys, *asked, "-o", tmp_path / "b.npz")
    run_json(capsys, *asked, "--seed", 1, "-o", tmp_path / "c.npz")
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b != c


def test_text_holds_the_result_and_stderr_the_choice(model: Path, capsys) -> None:
    code, out, err = run(capsys, model, "--random", "--repeat", 2)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{model} on cpu"
    assert lines[1] == "random inputs with batch=2, length=16"
    assert lines[4].split() == ["twice", "float16", "2x16x4", "0"]
    assert lines[-1].startswith("latency p50 ") and lines[-1].endswith(" over 2 runs")
    assert "m.onnx on cpu" in err


def test_nan_is_counted(tmp_path: Path, model: Path, capsys) -> None:
    x = np.array([np.nan, np.inf, 1, 40000], np.float16).reshape(1, 1, 4)  # 80000 is beyond float16
    np.savez(tmp_path / "x.npz", x=x, n=np.array([1]))
    assert run_json(capsys, model, "--inputs", tmp_path / "x.npz")["outputs"][0]["nonfinite"] == 3


def test_bfloat16_there_and_back(tmp_path: Path, capsys) -> None:
    text = '<ir_version: 9, opset_import: ["": 18]> g (bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }'
    path = write(tmp_path / "bf.onnx", text)
    x = np.array([1.5, -3e38, 1e-40], ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", x=x.view("V2"))
    seen = run_json(capsys, path, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert seen["outputs"] == [{"name": "y", "dtype": "bfloat16", "shape": [3], "nonfinite": 0}]
    # what was written is an input again
    np_y = np.load(tmp_path / "y.npz", allow_pickle=False)["y"]
    assert np_y.tobytes() == x.tobytes()


class TestFolder:
    def test_prefers_the_graph_lowered_for_onnx_runtime(self, folder: Path, capsys) -> None:
        text = KEY_MASK.replace("Attention(q, k, v, mask)", "Identity(q)")
        write(folder / "lowered.ort.onnx", text)
        seen = run_json(capsys, folder, "--random")
        assert seen["file"] == str(folder / "lowered.ort.onnx")
        assert "lowered for ONNX Runtime" in seen["why"]

    def test_lowers_fused_where_the_folder_is_for_another_target(self, folder: Path, capsys) -> None:
        seen = run_json(capsys, folder, "--random", "--provider", "cpu")
        assert seen["file"] == str(folder / "fused.onnx")
        assert "in memory" in seen["why"]
        assert seen["dims"] == {"batch": 3, "length": 5}  # the profile's usual sizes
        assert seen["outputs"] == [{"name": "y", "dtype": "float32", "shape": [3, 2, 5, 4], "nonfinite": 0}]
        with pytest.raises(Exception, match="mask"):  # as it is, the file does not run there
            import onnxruntime

            q = np.zeros((3, 2, 5, 4), np.float32)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(folder / "fused.onnx", options, providers=["CPUExecutionProvider"])
            session.run(None, {"q": q, "k": q, "v": q, "mask": np.ones((3, 1, 1, 5), bool)})

    def test_names_the_one_model_file_when_asked(self, folder: Path, tmp_path: Path, capsys) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        code, out, err = run(capsys, empty, "--random")
        assert (code, out) == (2, "")
        assert "holds neither lowered.ort.onnx nor fused.onnx" in err

    def test_an_engine_without_a_gpu_is_exit_3(self, folder: Path, capsys, monkeypatch) -> None:
        from engines import engine_runner

        none = Gpus((), None, "no NVIDIA driver is installed")
        monkeypatch.setattr(runnable, "gpus", lambda: none)
        monkeypatch.setattr(engine_runner, "gpus", lambda: none)
        monkeypatch.setattr("engines.engine_fit.installed", lambda record, name: None)
        code, out, err = run(capsys, folder, "--random", "--provider", "tensorrt-rtx")
        assert (code, out) == (3, "")
        assert "model.89.engine was built with tensorrt-rtx 1.7.1.116 for SM 89; here no NVIDIA driver" in err
        code, _, err = run(capsys, folder / "model.120.engine", "--random")
        assert code == 3
        assert "for SM 120" in err

    def test_the_engine_of_this_gpu(self, folder: Path, monkeypatch) -> None:
        from engines import engine_runner

        opened = []

        class Opened:
            def __init__(self, path: Path, *, runtime_cache: Path | None = None) -> None:
                opened.append(path)
                self.record = type("Record", (), {"dims": {"batch": (1, 3, 8)}})

        monkeypatch.setattr(engine_runner, "EngineRunner", Opened)
        monkeypatch.setattr(runnable, "gpus", lambda: Gpus((Gpu("RTX 5090", 120, 1),), "13.0", None))
        chosen = open_runnable(folder, "tensorrt-rtx")
        assert opened == [folder / "model.120.engine"]
        assert (chosen.why, chosen.usual) == ("it is the one for SM 120, RTX 5090", {"batch": 3})
        monkeypatch.setattr(runnable, "gpus", lambda: Gpus((Gpu("A100", 80, 1),), "13.0", None))
        with pytest.raises(Exception, match=r"engines for SM 89, 120; you have A100, SM 80\. Rebuild with.*--sm 80"):
            open_runnable(folder, "tensorrt-rtx")

    def test_no_engine_of_that_builder(self, folder: Path, capsys, monkeypatch) -> None:
        def absent(name: str) -> None:
            raise BackendMissingError("TensorRT is not installed. Install it: pip install")

        asked = (folder, "--random", "--provider", "tensorrt")
        monkeypatch.setattr(runnable.vendor, "load", absent)
        code, _, err = run(capsys, *asked)
        assert (code, "TensorRT is not installed" in err) == (3, True)
        monkeypatch.setattr(runnable.vendor, "load", lambda name: None)
        monkeypatch.setattr(runnable, "gpus", lambda: Gpus((), None, "there is no driver"))
        code, _, err = run(capsys, *asked)
        assert (code, "tensorrt engines run on an NVIDIA GPU; here there is no driver" in err) == (3, True)
        monkeypatch.setattr(runnable, "gpus", lambda: Gpus((Gpu("L4", 89, 1),), "13.0", None))
        code, _, err = run(capsys, *asked)
        assert code == 2
        assert "holds no tensorrt engine. Build one: python -m export build" in err

    def test_an_engine_runs_on_its_own_builder_only(self, folder: Path, capsys) -> None:
        code, _, err = run(capsys, folder / "model.89.engine", "--random", "--provider", "cpu")
        assert code == 2
        assert "is a tensorrt-rtx engine; run it with --provider tensorrt-rtx" in err

    def test_threads_are_for_onnx_runtime(self, folder: Path, capsys) -> None:
        code, _, err = run(capsys, folder, "--random", "--provider", "tensorrt-rtx", "--threads", 2)
        assert code == 2
        assert "--threads is for ONNX Runtime" in err


class TestBadInput:
    """Each a sentence, the right exit code, nothing on stdout and nothing written."""

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            (("nowhere.onnx", "--random"), 2, "There is no nowhere.onnx: give an artifact folder"),
            (("{bad}", "--random"), 2, "does not accept"),
            (("{model}", "--inputs", "nowhere.npz"), 2, "There is no file nowhere.npz"),
            (("{model}", "--inputs", "{bad}"), 2, "is not a .npz file of plain arrays"),
            (("{model}", "--inputs", "{objects}"), 2, "arrays of Python objects are not read"),
            (("{model}", "--inputs", "{wide}"), 2, "Cast it: array.astype(np.float16)"),
            (("{model}", "--inputs", "{odd}"), 2, "Dimension 'batch' is 2 in axis 0 of 'x' and 3 in axis 0 of 'n'"),
            (("{model}", "--inputs", "{odd}", "--shapes", "batch=2"), 2, "--shapes and --seed are for --random"),
            (("{model}", "--random", "--shapes", "batch"), 2, "'batch' is not a size"),
            (("{model}", "--random", "--shapes", "width=2"), 2, "no symbolic dimension 'width'"),
            (("{model}", "--random", "--repeat", "0"), 2, "--repeat 0 times nothing"),
            (("{model}", "--random", "--threads", "0"), 2, "0 threads"),
            (("{model}", "--random", "-o", "nowhere/y.npz"), 2, "there is no folder nowhere"),
            (("{model}", "--random", "--provider", "tensorrt-rtx"), 3, "python -m export build MODEL.onnx"),
        ],
    )
    def test_each(self, words, code: int, said: str, model: Path, tmp_path: Path, capsys) -> None:
        paths = {"model": model, "bad": tmp_path / "bad.onnx"}
        paths["bad"].write_bytes(b"neither")
        x = np.zeros((2, 3, 4), np.float16)
        for name, arrays in {
            "objects": {"x": np.array([{}])},
            "wide": {"x": x.astype(np.float32), "n": np.zeros(2, np.int64)},
            "odd": {"x": x, "n": np.zeros(3, np.int64)},
        }.items():
            paths[name] = tmp_path / f"{name}.npz"
            np.savez(paths[name], **arrays)
        before = sorted(tmp_path.iterdir())
        got, out, err = run(capsys, *(word.format(**paths) for word in words))
        assert (got, out) == (code, "")
        assert said in err
        assert sorted(tmp_path.iterdir()) == before

    def test_json_errors_are_json(self, model: Path, capsys) -> None:
        code, out, _ = run(capsys, model, "--random", "--provider", "tensorrt-rtx", "--json")
        assert code == 3
        assert json.loads(out)["error"]["type"] == "BackendMissingError"

    @pytest.mark.parametrize("words", [[], ["--random", "--inputs", "x.npz"], ["--random", "--provider", "gpu"]])
    def test_flags_that_contradict(self, words: list[str], capsys) -> None:
        with pytest.raises(SystemExit) as caught:
            run(capsys, "m.onnx", *words)
        assert caught.value.code == 2


def test_a_provider_that_does_not_load_prints_nothing_but_our_sentence(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "export", "run", model, "--random", "--provider", "cuda"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode == 0:
        pytest.skip("CUDA works on this machine, so nothing is refused")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: The provider cuda is not usable here. ")
    assert len(done.stderr.splitlines()) == 1
