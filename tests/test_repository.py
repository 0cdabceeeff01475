"""A model repository: its config parses by the server's schema and says what the model's file does; or a sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import small_models
import triton_schema
from google.protobuf import text_format

from engines import engine_json
from engines.runner import TensorSpec
from export import cli, repository, triton_config
from export.errors import UsageError
from export.triton_config import ModelConfig, max_batch_size

DIMS = {"batch": [1, 2, 8], "length": [1, 16, 64]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder built for ONNX Runtime, with the repository that `build --format` wrote beside it."""
    place = tmp_path_factory.mktemp("r")
    model = small_models.save(small_models.attention("float16"), place / "net.onnx")
    words = ["build", str(model), "-o", str(place / "o"), "--target", "ort", "--shapes", "batch=1:2:3,length=1:6:9"]
    assert cli.main([*words, "--no-verify", "--format", "triton-repository"]) == 0
    return place / "o"


def engines(folder: Path, sms: tuple[int, ...] = (90,), target: str = "tensorrt", **changes: Any) -> Path:
    """Writes what a build for full TensorRT leaves, as far as a repository needs it."""
    folder.mkdir()
    entries = []
    for sm in sms:
        (folder / f"model.{sm}.engine").write_bytes(b"plan %d" % sm)
        entry = {"file": f"model.{sm}.engine", "sha256": engine_json.digest(folder / f"model.{sm}.engine"), "size": 6}
        entry |= {"vendor": "tensorrt", "version": "11.4.0.106", "sm": sm, "profile": {"dims": DIMS, "inputs": {}}}
        entry["inputs"] = [
            {"name": "x", "dtype": "bfloat16", "shape": ["batch", "length", 64]},
            {"name": "lengths", "dtype": "int32", "shape": ["batch"]},
        ]
        entry["outputs"] = [{"name": "y", "dtype": "bfloat16", "shape": ["batch", "length", 64]}]
        entries.append(entry | changes)
    files = {path.name: engine_json.digest(path) for path in folder.iterdir()}
    content: dict[str, Any] = {"schema": 1, "target": target, "passed": True, "opset": 23, "profile": DIMS}
    content |= {"engines": entries, "files": files}
    seal(folder, content)
    (folder / ".artifact.json").write_text('{"schema": 1, "artifact": "attnproof"}')
    return folder


def seal(folder: Path, content: dict[str, Any]) -> None:
    content.pop("sha256", None)
    sealed = {**content, "sha256": engine_json.seal(content)}
    (folder / "engine.json").write_text(json.dumps(sealed))


def config(model: Path) -> Any:
    return triton_schema.parse((model / "config.pbtxt").read_text())


def test_build_writes_an_onnx_model_that_the_config_describes(built: Path) -> None:
    model = built.parent / "o.triton" / "o"
    assert sorted(str(p.relative_to(model)) for p in model.rglob("*")) == [
        ".artifact.json", "1", "1/model.onnx", "config.pbtxt"
    ]  # fmt: skip
    said = config(model)
    assert (said.name, said.platform, said.max_batch_size) == ("o", "onnxruntime_onnx", 3)
    assert said.default_model_filename == "model.onnx"
    assert [(t.name, list(t.dims)) for t in (*said.input, *said.output)] == [("x", [-1, 16]), ("y", [-1, 16])]
    assert {t.data_type for t in (*said.input, *said.output)} == {triton_schema.ENUMS["DataType"].index("TYPE_FP16")}
    assert [(g.kind, g.count) for g in said.instance_group] == [(0, 1)]
    assert (model / "1/model.onnx").read_bytes() == (built / "lowered.ort.onnx").read_bytes()


def test_the_command_prints_the_config(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["package", str(built), "-o", str(tmp_path / "models"), "--name", "attention-1", "--kind", "cpu"]
    capsys.readouterr()
    assert cli.main([*words, "--instances", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == (tmp_path / "models/attention-1/config.pbtxt").read_text()
    assert "wrote     " in err
    said = config(tmp_path / "models/attention-1")
    assert (said.name, said.instance_group[0].kind, said.instance_group[0].count) == ("attention-1", 2, 2)
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [".artifact.json", "1/model.onnx", "config.pbtxt"]


def test_an_engine(tmp_path: Path) -> None:
    done = repository.write(engines(tmp_path / "net"), tmp_path / "models")
    said = config(done.model)
    assert (said.name, said.platform, said.max_batch_size) == ("net", "tensorrt_plan", 8)
    assert said.default_model_filename == "model.plan"
    assert dict(said.cc_model_filenames) == {}
    assert said.instance_group[0].kind == 1
    x, lengths = said.input
    assert (x.data_type, list(x.dims)) == (triton_schema.ENUMS["DataType"].index("TYPE_BF16"), [-1, 64])
    assert (list(lengths.dims), lengths.HasField("reshape"), list(lengths.reshape.shape)) == ([1], True, [])
    assert (done.model / "1/model.plan").read_bytes() == b"plan 90"
    assert "sha256 " in (done.model / "config.pbtxt").read_text().splitlines()[0]


def test_engines_for_several_architectures(tmp_path: Path) -> None:
    done = repository.write(engines(tmp_path / "net", (89, 120)), tmp_path / "models")
    said = config(done.model)
    assert dict(said.cc_model_filenames) == {"8.9": "model.sm89.plan", "12.0": "model.sm120.plan"}
    assert said.default_model_filename == "model.sm89.plan"
    assert (done.model / "1/model.sm120.plan").read_bytes() == b"plan 120"


def test_a_version_compatible_engine_says_how_to_start_the_server(tmp_path: Path) -> None:
    folder = engines(tmp_path / "net", flags={"version_compatible": True})
    text = (repository.write(folder, tmp_path / "models").model / "config.pbtxt").read_text()
    assert "# To run it on a later TensorRT: tritonserver --backend-config=tensorrt,version-compatible=true" in text


def test_weights_beside_the_model_come_along(built: Path, tmp_path: Path) -> None:
    import onnxruntime

    folder = shutil.copytree(built, tmp_path / "big")
    model = onnx.load(folder / "lowered.ort.onnx")
    onnx.save(
        model, folder / "lowered.ort.onnx", save_as_external_data=True, location="lowered.ort.onnx.data",
        size_threshold=256,
    )  # fmt: skip
    content = json.loads((folder / "engine.json").read_text())
    for name in ("lowered.ort.onnx", "lowered.ort.onnx.data"):
        content["files"][name] = engine_json.digest(folder / name)
    seal(folder, content)
    done = repository.write(folder, tmp_path / "models")
    assert sorted(p.name for p in (done.model / "1/model.onnx").iterdir()) == ["lowered.ort.onnx.data", "model.onnx"]
    session = onnxruntime.InferenceSession(
        str(done.model / "1/model.onnx/model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [i.name for i in session.get_inputs()] == [t.name for t in config(done.model).input]


def test_other_models_of_the_repository_stay(tmp_path: Path) -> None:
    other = tmp_path / "models" / "other"
    other.mkdir(parents=True)
    (other / "config.pbtxt").write_text("")
    repository.write(engines(tmp_path / "net"), tmp_path / "models")
    repository.write(tmp_path / "net", tmp_path / "models")
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["net", "other"]
    with pytest.raises(UsageError, match="holds files that this toolkit did not make"):
        repository.write(tmp_path / "net", tmp_path / "models", name="other")


class TestRefusals:
    """Nothing is written."""

    def refusal(self, folder: Path, **options: Any) -> str:
        with pytest.raises(UsageError) as caught:
            repository.write(folder, folder.parent / "models", **options)
        assert not (folder.parent / "models").exists()
        return str(caught.value)

    def test_targets_the_server_does_not_run(self, tmp_path: Path) -> None:
        rtx = self.refusal(engines(tmp_path / "rtx", target="tensorrt-rtx"))
        assert "loads engines of full TensorRT, and not those of TensorRT-RTX" in rtx
        assert "--target ort" in rtx
        assert "what the standard allows is more" in self.refusal(engines(tmp_path / "std", (), target="onnx"))

    def test_a_stripped_engine(self, tmp_path: Path) -> None:
        assert "holds no weights" in self.refusal(engines(tmp_path / "net", flags={"strip_plan": True}))

    def test_a_folder_that_failed_or_was_changed_or_is_none(self, tmp_path: Path) -> None:
        folder = engines(tmp_path / "net")
        content = json.loads((folder / "engine.json").read_text())
        seal(folder, {**content, "passed": False})
        assert "FAILED its checks, so it is not served" in self.refusal(folder)
        (folder / "engine.json").write_text(json.dumps({**content, "opset": 1}))
        assert "engine.json is not what the build wrote" in self.refusal(folder)
        (folder / "engine.json").write_text(json.dumps(content))
        (folder / "model.90.engine").write_bytes(b"another")
        assert "model.90.engine is not the file that the build wrote" in self.refusal(folder)
        (folder / "engine.json").write_text('{"schema": 1, "engines": []}')
        assert "is not a complete artifact" in self.refusal(folder)
        assert "There is no" in self.refusal(tmp_path / "none")

    def test_a_type_that_the_server_lacks(self, tmp_path: Path) -> None:
        odd = [{"name": "x", "dtype": "float8_e4m3fn", "shape": ["batch", 8]}]
        said = self.refusal(engines(tmp_path / "net", inputs=odd))
        assert "The input 'x' is float8_e4m3fn, and Triton Inference Server has no such type" in said

    def test_names_and_instances(self, tmp_path: Path) -> None:
        folder = engines(tmp_path / "net")
        assert "'a/b' is no name for a model" in self.refusal(folder, name="a/b")
        assert "of one instance or more" in self.refusal(folder, instances=0)
        assert "An engine runs on a GPU" in self.refusal(folder, kind="cpu")


@pytest.mark.parametrize(
    ("shapes", "ranges", "expected"),
    [
        ([("batch", "length", 8), ("batch", 8)], (1, 2, 8), 8),
        ([("batch", 8), ("length", 8)], (1, 2, 8), 0),  # another first axis
        ([("batch", 8), (2, 8)], (1, 2, 8), 0),  # a fixed one
        ([("batch", 8), ()], (1, 2, 8), 0),  # a scalar
        ([("batch", "batch", 8)], (1, 2, 8), 0),  # the batch sizes another axis, too
        ([("batch", "2*batch")], (1, 2, 8), 0),
        ([("batch", 8)], (4, 4, 4), 0),  # single requests would not fit the profile
        ([("rows", 8)], (1, 2, 8), 0),  # nobody knows its range
    ],
)
def test_when_the_first_axis_is_a_batch(shapes: list, ranges: tuple[int, int, int], expected: int) -> None:
    tensors = [TensorSpec(f"t{i}", "float32", shape) for i, shape in enumerate(shapes)]
    assert max_batch_size(tensors, {"batch": ranges, "length": (1, 1, 9)}) == expected


def test_full_shapes_without_a_batch_and_names_with_quotes() -> None:
    tensors = (TensorSpec('a "b"\\', "int64", ("n", 3)), TensorSpec("s", "bool", ()))
    said = triton_schema.parse(ModelConfig("m", "tensorrt_plan", 0, tensors, tensors[:1], "model.plan").as_text())
    assert [(t.name, list(t.dims)) for t in said.input] == [('a "b"\\', [-1, 3]), ("s", [1])]
    assert said.input[1].HasField("reshape")
    assert not said.input[0].HasField("reshape")


def test_every_type_is_in_the_schema_and_a_wrong_field_is_an_error() -> None:
    assert set(triton_config.TYPES.values()) < set(triton_schema.ENUMS["DataType"])
    assert set(triton_config.KINDS.values()) < set(triton_schema.ENUMS["ModelInstanceGroup.Kind"])
    with pytest.raises(text_format.ParseError):
        triton_schema.parse("max_batch: 3")
