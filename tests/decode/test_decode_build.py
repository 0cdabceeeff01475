"""`build --decode`: what the folder, report.json and engine.json say, and that it can be run, checked and refused."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from text_decoder import LONGEST, model

import export
from engines.errors import BackendMissingError, UsageError
from export.cli import main
from export.recheck import recheck
from export.report import terminal

SHAPES = {"B": "1:2:4", "L": f"1:8:{LONGEST}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decode")
    ir.save(model(), place / "small.onnx")
    report = export.build(
        str(place / "small.onnx"), target="ort", decode=True, shapes=SHAPES, out=str(place / "out"), verify=False
    )
    assert report.passed, report.failures
    return place / "out"


def test_report_and_engine_json_list_graphs_caches_lengths_and_parity(folder: Path) -> None:
    decode = json.loads((folder / "report.json").read_text())["decode"]
    assert decode["kind"] == "growing" and decode["capacity"] == LONGEST and decode["tokens"] == ["x"]
    assert decode["graphs"] == {"prefill": "decode.ort.onnx", "step": "decode.ort.onnx"}
    assert decode["caches"] == [
        {"past": f"past_key_values.0.{kind}", "present": f"present.0.{kind}", "axis": 2} for kind in ("key", "value")
    ]
    status = {row["case"]: row["status"] for row in decode["parity"]["rows"]}
    assert status["steps"] == status["cache-full"] == "ok" and status["ragged"] == "not run"
    recorded = json.loads((folder / "engine.json").read_text())
    assert recorded["decode"]["graphs"] == decode["graphs"] and "decode.ort.onnx" in recorded["files"]


def test_the_loop_of_a_folder_runs_and_the_folder_is_judged_again(folder: Path) -> None:
    loop = export.generator(folder)
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    first = loop.prefill({"x": x[:, :3]})["y"]
    assert first.shape == (2, 3, 16) and loop.step({"x": x[:, 3:4]})["y"].shape == (2, 1, 16)
    again = recheck(folder)
    assert again.passed and again.decode is not None and again.decode["parity"]["passed"]
    assert "a growing cache of 2 tensors, added here, for 24 tokens" in terminal.render(again)
    with pytest.raises((UsageError, BackendMissingError)):
        export.generator(folder, "tensorrt-rtx")


def test_a_damaged_decode_graph_fails_the_check(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    broken = ir.load(copy / "decode.ort.onnx")
    next(n for n in broken.graph if n.op_type == "Attention").attributes.pop("is_causal")
    ir.save(broken, copy / "decode.ort.onnx")
    again = recheck(copy)
    assert any("decode.ort.onnx is not the file" in text for text in again.failures)
    assert any(text.startswith("decode, case steps") for text in again.failures)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--cache-length", "8"], "cache-length is for decode"),
        (["--decode", "--cache-length", "1"], "at least 2"),
        (["--decode", "--cache-length", "25", "--shapes", "B=1:2:4,L=1:8:24"], "L=25"),
    ],
)
def test_a_cache_length_that_cannot_be_is_a_sentence(
    words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ir.save(model(), tmp_path / "small.onnx")
    out = ["--target", "ort", "--no-verify", "-o", str(tmp_path / "out"), *words]
    assert main(["build", str(tmp_path / "small.onnx"), *out]) == 2
    assert why in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_cache_says_so(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(json.dumps({"schema": 1, "engines": [], "target": "ort"}))
    with pytest.raises(UsageError, match="was built without a cache"):
        export.generator(tmp_path)
