"""Every bad input: one clear sentence, the right exit code, nothing left behind, nothing changed."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models

from export import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command that must be refused, checks what is common to all, and returns the sentence."""

    def run(*words: str, code: int = 2) -> str:
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts}
        assert cli.main(list(words)) == code
        after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts}
        assert after == before, "something was left behind or changed"
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert "Unexpected" not in lines[0]
        return lines[0].removeprefix("error: ")

    return run


def both(name: str) -> list[list[str]]:
    """The two commands that take an ONNX file and write something."""
    return [["fuse", name, "-o", "o.onnx"], ["build", name, "-o", "out"]]


def test_missing_file(refused) -> None:
    for words in (*both("none.onnx"), ["inspect", "none.onnx"]):
        assert "none.onnx does not exist; check the path." in refused(*words)
    assert "none.py" in refused("build", "none.py:make")
    assert "nothere" in refused("build", "nothere.module:make")
    assert "out/none" in refused("check", "out/none")


def test_unknown_form_suggests_the_nearest(refused) -> None:
    assert "There is no form called 'mha-rop'. Did you mean mha-rope" in refused("build", "mha-rop")


def test_not_onnx(place: Path, refused) -> None:
    (place / "text.onnx").write_text("this is a text about attention, and not a model at all\n" * 10)
    (place / "empty.onnx").touch()
    for words in both("text.onnx"):
        assert "is not an ONNX model" in refused(*words)
    assert "is empty" in refused("inspect", "empty.onnx")


def test_truncated_onnx(place: Path, refused) -> None:
    whole = small_models.attention().SerializeToString()
    (place / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for words in both("cut.onnx"):
        assert "truncated" in refused(*words)


def test_external_data_missing_or_outside(place: Path, refused) -> None:
    folder = place / "model"
    folder.mkdir()
    model = small_models.attention()
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    data = (folder / "m.data").read_bytes()
    (folder / "m.data").unlink()
    for words in both("model/m.onnx"):
        assert "which cannot be read (No such file or directory)" in refused(*words)
    (place / "secret.data").write_bytes(data)
    text = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in text.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret.data"
    (folder / "m.onnx").write_bytes(text.SerializeToString())
    for words in both("model/m.onnx"):
        assert "not a path inside the model's folder" in refused(*words)


@pytest.mark.parametrize(("opset", "expected"), [(9, "the oldest that can be read is 13"), (99, "needs opset 99")])
def test_opset_too_old_or_unknown(place: Path, refused, opset: int, expected: str) -> None:
    model = small_models.attention()
    model.opset_import[0].version = opset
    small_models.save(model, place / "m.onnx")
    for words in both("m.onnx"):
        assert expected in refused(*words)


def test_opset_of_an_export_that_does_not_exist(refused) -> None:
    assert "opset" in refused("build", "mha-rope", "--opset", "99", "-o", "out")
    assert "opset" in refused("build", "mha-rope", "--opset", "5", "-o", "out")


def test_unknown_custom_operator(place: Path, refused) -> None:
    model = small_models.attention(extra="  unused = custom.Sparkle(x)\n")
    small_models.save(model, place / "m.onnx")
    assert "custom::Sparkle" in refused("build", "m.onnx", "-o", "out")
    assert "custom::Sparkle" in refused("build", "m.onnx", "-o", "out", "--target", "ort")


def factory(place: Path, text: str, name: str = "net.py") -> str:
    (place / name).write_text(small_models.FACTORY + text)
    return f"{name}:bad"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def bad():\n    raise RuntimeError('no checkpoint here')\n", "no checkpoint here"),
        ("def bad():\n    return Block(width=15, heads=2), (torch.randn(2, 7, 15),)\n", "15"),
        ("def bad():\n    return Block(), (torch.randn(2, 7, 20),)\n", "20"),
        ("def bad():\n    return Block(), (torch.randn(2, 7, 16), torch.randn(2))\n", "forward"),
        ("def bad():\n    return Block()\n", "(module, inputs)"),
        ("bad = 3\n", "bad"),
        ("def worse():\n    pass\n", "bad"),
        ("def bad(:\n", "line"),
        ("import nothere_at_all\ndef bad():\n    pass\n", "nothere_at_all"),
        (
            "def bad():\n    m = Block()\n    m.out.weight.data[0] = torch.nan\n    return m, (torch.ones(2, 7, 16),)",
            "`out.weight` holds 16 NaN",
        ),
    ],
    ids=["raises", "heads", "width", "arguments", "no inputs", "no function", "no factory", "syntax", "import", "nan"],
)
def test_factories(place: Path, refused, text: str, expected: str) -> None:
    assert expected in refused("build", factory(place, text), "-o", "out")


def test_embedding_size_not_divisible_by_heads(place: Path, refused) -> None:
    source = factory(
        place,
        "def bad():\n"
        "    from export.model.default import MultiHeadAttention\n"
        "    return MultiHeadAttention(100, 3), (torch.randn(2, 7, 100),)\n",
    )
    sentence = refused("build", source, "-o", "out")
    assert "100" in sentence
    assert "3" in sentence


def test_length_beyond_a_causal_buffer(refused) -> None:
    sentence = refused("build", "gpt-causal", "-o", "out", "--shapes", "length=1:16:1000", "--target", "ort")
    assert "1000 positions, but the causal mask buffer (max_seq_len) holds 64" in sentence


def test_nan_weights_in_a_file(place: Path, refused) -> None:
    model = small_models.attention()
    weight = np.array(onnx.numpy_helper.to_array(model.graph.initializer[0]))
    weight[3, 3] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "wq"))
    small_models.save(model, place / "m.onnx")
    assert "The weight 'wq' of" in refused("build", "m.onnx", "-o", "out")


def test_shapes(place: Path, refused) -> None:
    small_models.save(small_models.attention("float16"), place / "m.onnx")
    assert "opt 9 lies outside 1..8" in refused("build", "m.onnx", "-o", "out", "--shapes", "batch=1:9:8")
    assert "no dimension 'lenght'" in refused("build", "m.onnx", "-o", "out", "--shapes", "lenght=1:2:3")
    assert "is no shape" in refused("build", "m.onnx", "-o", "out", "--shapes", "batch")


def test_a_size_baked_in_at_export(place: Path, refused) -> None:
    model = small_models.attention("float16")
    merge = next(i for i in model.graph.initializer if i.name == "merge")
    merge.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 7, 16]), "merge"))
    small_models.save(model, place / "m.onnx")
    assert "does not run at batch=1, length=" in refused("build", "m.onnx", "-o", "out")


def test_a_limit_that_only_the_default_sizes_meet(place: Path, refused) -> None:
    (place / "short_net.py").write_text(
        small_models.FACTORY.replace(
            "self.heads = heads\n", "self.heads = heads\n        self.place = nn.Embedding(20, width)\n"
        ).replace("b, s, e = x.shape\n", "b, s, e = x.shape\n        x = x + self.place(torch.arange(s))\n")
    )
    sentence = refused("build", "short_net.py:make", "-o", "out", "--target", "ort")
    assert "length=512" in sentence and "Nobody gave sizes for" in sentence
    assert "length=1:128:512" in sentence and "as in --shapes" in sentence
    given = refused("build", "short_net.py:make", "-o", "out", "--target", "ort", "--shapes", "batch=2,length=1:8:99")
    assert "Give --shapes that the module takes." in given and "Nobody" not in given


def test_unknown_architecture(refused) -> None:
    assert "does not compile for SM 42" in refused("build", "-o", "out", "--target", "tensorrt-rtx", "--sm", "42")
    assert "no compute capability" in refused("build", "-o", "out", "--sm", "ada")
    assert "builds none" in refused("build", "-o", "out", "--sm", "89", "--target", "ort")


def test_target_that_is_not_installed(refused) -> None:
    sentence = refused("build", "-o", "out", "--target", "tensorrt", code=3)
    assert "pip install 'attnproof[tensorrt]'" in sentence


def test_a_file_in_half_precision_is_not_converted(place: Path, refused) -> None:
    small_models.save(small_models.attention("float16"), place / "m.onnx")
    assert "computes in fp16, and --dtype fp32" in refused("build", "m.onnx", "-o", "out", "--dtype", "fp32")


def test_config_file(place: Path, refused) -> None:
    (place / "x.toml").write_text('targte = "ort"\n')
    assert "no key 'targte'; did you mean 'target'?" in refused("build", "--config", "x.toml")
    assert "none.toml cannot be read" in refused("build", "--config", "none.toml")


def test_folder_that_cannot_be_written(place: Path, refused) -> None:
    small_models.save(small_models.attention("float16"), place / "m.onnx")
    (place / "file").touch()
    for out in ("file", "file/below", "/proc/out"):
        assert out in refused("build", "m.onnx", "-o", out, "--target", "ort")
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").touch()
    assert "holds files that this toolkit did not make" in refused("build", "m.onnx", "-o", "mine", "--target", "ort")
    assert "there is no folder" in refused("fuse", "m.onnx", "-o", "none/o.onnx")
    assert "its folder does not exist" in refused("fuse", "m.onnx", "-o", "o.onnx", "--report", "none/r.json")


@pytest.mark.parametrize(
    "words", [["fuse", "m.onnx", "-o", "o.onnx"], ["build", "m.onnx", "-o", "out", "--target", "ort"]]
)
def test_disk_full(place: Path, words: list[str]) -> None:
    small_models.save(small_models.attention(), place / "m.onnx")
    before = sorted(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "export", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A file size limit stands in for a full disk: writing past it fails in the same place.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr or "Cannot write" in done.stderr
    assert "Unexpected" not in done.stderr
    assert sorted(place.rglob("*")) == before
