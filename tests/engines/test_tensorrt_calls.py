"""Every call that a build or a run makes on full TensorRT, against a TensorRT that takes only what 11.4 takes."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bindings
import fake_vendor
import pytest

from engines import engine_json, flags, refit, vendor, worker
from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.flags import Flags
from engines.vendor import DTYPES, Vendor

ENGINES = Path(vendor.__file__).parent
DESCRIPTION = bindings.recorded()
PLAIN = Flags()
PROFILE = {"x": [[1, 8], [4, 8], [16, 8]]}
STRONG = "Builder.create_network(1)"
START = [
    STRONG,
    "OnnxParser.supports_operator('Odd')",
    "OnnxParser.parse_from_file('m.onnx')",
    "Builder.create_builder_config()",
    "IBuilderConfig.profiling_verbosity = DETAILED",
    "IBuilderConfig.progress_monitor = Monitor",
    "INetworkDefinition.get_input(0)",
    "Builder.create_optimization_profile()",
    "IOptimizationProfile.set_shape('x', [1, 8], [4, 8], [16, 8])",
    "IBuilderConfig.add_optimization_profile(IOptimizationProfile)",
    "IBuilderConfig.clear_flag(TF32)",
]
END = ["Builder.build_serialized_network(INetworkDefinition, IBuilderConfig)", "INetworkDefinition.get_output(0)"]


class Fake:
    """A TensorRT of one network, and what was called on it."""

    def __init__(self, **given: Any) -> None:
        self.record = bindings.Recorder()
        self.timings: dict[str, bytes] = {"measured": b"measured"}
        self.good = lambda content: True
        answers: dict[str, Any] = {
            "Builder.create_network": lambda *a: self.trt.INetworkDefinition(),
            "Builder.create_builder_config": lambda *a: self.trt.IBuilderConfig(),
            "Builder.create_optimization_profile": lambda *a: self.trt.IOptimizationProfile(),
            "Builder.build_serialized_network": lambda *a: b"plan",
            "OnnxParser.parse_from_file": lambda *a: True,
            "OnnxParser.supports_operator": lambda *a: False,
            "OnnxParser.get_used_vc_plugin_libraries": lambda *a: ["vc_plugin.so"],
            "INetworkDefinition.num_inputs": lambda s: 1,
            "INetworkDefinition.num_outputs": lambda s: 1,
            "INetworkDefinition.get_input": lambda *a: self.tensor("x"),
            "INetworkDefinition.get_output": lambda *a: self.tensor("y"),
            "IBuilderConfig.add_optimization_profile": lambda *a: 0,
            "IBuilderConfig.create_timing_cache": self._cache,
            "IBuilderConfig.set_timing_cache": lambda s, cache, ignore_mismatch: self.good(cache.content),
            "IBuilderConfig.get_timing_cache": lambda *a: self._measured,
            "ITimingCache.serialize": lambda s: s.content,
            "ITimingCache.combine": self._combine,
        }
        self.trt = bindings.module(DESCRIPTION, self.record, answers | given)
        self._measured = self._cache(None, b"measured")

    def tensor(self, name: str) -> Any:
        return SimpleNamespace(name=name, shape=(-1, 8), is_shape_tensor=False, dtype=self.trt.DataType.HALF)

    def _cache(self, config: Any, serialized_timing_cache: bytes) -> Any:
        cache = self.trt.ITimingCache()
        object.__setattr__(cache, "content", serialized_timing_cache)
        return cache

    @staticmethod
    def _combine(cache: Any, input_cache: Any, ignore_mismatch: bool) -> bool:
        object.__setattr__(cache, "content", cache.content + b"+" + input_cache.content)
        return True

    def vendor(self) -> Vendor:
        return Vendor("tensorrt", "TensorRT", self.trt, "11.4.0.106", None, True, "timing")

    def build(self, folder: Path, monkeypatch: pytest.MonkeyPatch, asked: Flags = PLAIN) -> list[dict[str, Any]]:
        """Builds; returns what was sent besides the answer."""
        monkeypatch.setattr(vendor, "load", lambda name: self.vendor())
        sent: list[dict[str, Any]] = []
        request = {"vendor": "tensorrt", "onnx": "m.onnx", "engine": str(folder / "e"), "sm": 90, "profiles": [PROFILE]}
        request |= {"foreign": [("n", "my", "Odd", False)], "flags": json.loads(json.dumps(asked.as_dict()))}
        told = worker.build(request, lambda **line: sent.append(line))
        assert told["inputs"] == {"x": "float16"}
        assert (folder / "e").read_bytes() == b"plan"
        return sent


def test_a_plain_build_makes_these_calls_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    assert fake.build(tmp_path, monkeypatch) == []
    assert fake.record.calls == [*START, *END]


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        (Flags(refit=True), ["IBuilderConfig.set_flag(REFIT)"]),
        (Flags(strip_plan=True), ["IBuilderConfig.set_flag(STRIP_PLAN)"]),
        (
            Flags(version_compatible=True),
            [
                "IBuilderConfig.set_flag(VERSION_COMPATIBLE)",
                "OnnxParser.get_used_vc_plugin_libraries()",
                "IBuilderConfig.plugins_to_serialize = ['vc_plugin.so']",
            ],
        ),
        (
            Flags(hardware_compatibility="ampere-plus"),
            ["IBuilderConfig.hardware_compatibility_level = AMPERE_PLUS"],
        ),
        (
            Flags(hardware_compatibility="same-compute-capability"),
            ["IBuilderConfig.hardware_compatibility_level = SAME_COMPUTE_CAPABILITY"],
        ),
    ],
)
def test_each_flag_reaches_the_config(tmp_path: Path, monkeypatch, asked: Flags, calls: list[str]) -> None:
    fake = Fake()
    fake.build(tmp_path, monkeypatch, asked)
    assert fake.record.calls == [*START, *calls, *END]


class TestTimingCache:
    def test_a_new_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = Fake()
        assert fake.build(tmp_path, monkeypatch, Flags(timing_cache=str(tmp_path / "t"))) == []
        middle = ["IBuilderConfig.create_timing_cache(b'')", "IBuilderConfig.set_timing_cache(ITimingCache, False)"]
        keep = ["IBuilderConfig.get_timing_cache()", "ITimingCache.serialize()"]
        assert fake.record.calls == [*START, *middle, END[0], *keep, END[1]]
        assert (tmp_path / "t").read_bytes() == b"measured"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "t"]

    def test_the_file_that_is_there_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = Fake()
        (tmp_path / "t").write_bytes(b"old")
        assert fake.build(tmp_path, monkeypatch, Flags(timing_cache=str(tmp_path / "t"))) == []
        assert "IBuilderConfig.create_timing_cache(b'old')" in fake.record.calls

    def test_what_another_build_wrote_meanwhile_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def meanwhile(*args: Any) -> bytes:
            (tmp_path / "t").write_bytes(b"theirs")
            return b"plan"

        fake = Fake(**{"Builder.build_serialized_network": meanwhile})
        fake.build(tmp_path, monkeypatch, Flags(timing_cache=str(tmp_path / "t")))
        assert "ITimingCache.combine(ITimingCache, False)" in fake.record.calls
        assert (tmp_path / "t").read_bytes() == b"measured+theirs"

    def test_a_cache_of_another_gpu_is_begun_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = Fake()
        fake.good = lambda content: content != b"old"
        (tmp_path / "t").write_bytes(b"old")
        (sent,) = fake.build(tmp_path, monkeypatch, Flags(timing_cache=str(tmp_path / "t")))
        assert "is damaged, or of another GPU or version of TensorRT; a new one is begun" in sent["log"][1]
        assert (tmp_path / "t").read_bytes() == b"measured"

    def test_a_place_that_cannot_be_written_keeps_the_engine(self, tmp_path: Path, monkeypatch) -> None:
        def gone(*args: Any) -> bytes:
            (tmp_path / "d").rmdir()
            return b"plan"

        (tmp_path / "d").mkdir()
        fake = Fake(**{"Builder.build_serialized_network": gone})
        (sent,) = fake.build(tmp_path, monkeypatch, Flags(timing_cache=str(tmp_path / "d/t")))
        assert "cannot be written: No such file" in sent["log"][1]

    def test_a_builder_that_makes_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = Fake(**{"IBuilderConfig.create_timing_cache": lambda *a: None})
        with pytest.raises(ToolkitError, match="made no timing cache"):
            fake.build(tmp_path, monkeypatch, Flags(timing_cache=str(tmp_path / "t")))


class TestRefusals:
    rtx = Vendor("tensorrt-rtx", "TensorRT-RTX", None, "1.7", (89,), False, "runtime")

    @pytest.mark.parametrize(
        ("asked", "sentence"),
        [
            (Flags(timing_cache="t"), "TensorRT-RTX 1.7 times nothing while it builds, so it has no timing cache"),
            (Flags(hardware_compatibility="ampere-plus"), "has no hardware compatibility levels.*--sm 86,89,120"),
            (Flags(version_compatible=True), "ties every engine to its own version"),
        ],
    )
    def test_what_rtx_lacks(self, asked: Flags, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            flags.refuse(asked, self.rtx)
        flags.refuse(asked, Fake().vendor())

    @pytest.mark.parametrize(("asked", "flag"), [(Flags(refit=True), "--refit"), (Flags(strip_plan=True), "--strip")])
    def test_what_rtx_does_only_with_a_gpu(self, monkeypatch: pytest.MonkeyPatch, asked: Flags, flag: str) -> None:
        monkeypatch.setattr(flags, "gpus", lambda: SimpleNamespace(found=(), reason="no driver is installed"))
        with pytest.raises(
            BackendMissingError, match=f"onto a GPU while it builds: no driver is installed. Leave {flag}"
        ):
            flags.refuse(asked, self.rtx)
        monkeypatch.setattr(flags, "gpus", lambda: SimpleNamespace(found=(1,), reason=None))
        flags.refuse(asked, self.rtx)

    def test_a_level_that_does_not_exist(self) -> None:
        with pytest.raises(UsageError, match="choose ampere-plus or same-compute-capability"):
            Flags(hardware_compatibility="all")

    def test_a_timing_cache_without_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="its folder does not exist"):
            flags.refuse(Flags(timing_cache=str(tmp_path / "no/t")), Fake().vendor())
        with pytest.raises(UsageError, match="is a folder"):
            flags.refuse(Flags(timing_cache=str(tmp_path)), Fake().vendor())


class TestStrippedEngines:
    def folder(self, place: Path, **changes: Any) -> Path:
        (place / "lowered.tensorrt.onnx").write_bytes(b"weights")
        (place / "lowered.tensorrt.onnx.data").write_bytes(b"more")
        signed = {p.name: engine_json.digest(p) for p in place.iterdir()}
        content = {"schema": 1, "target": "tensorrt", "engines": [], "files": signed} | changes
        (place / "engine.json").write_text(json.dumps(content))
        return place / "model.90.engine"

    def test_the_weights_come_from_the_onnx_file_of_the_build(self, tmp_path: Path) -> None:
        made: dict[str, Any] = {}
        fake = Fake(
            **{
                "OnnxParserRefitter.refit_from_file": lambda s, model: made.update(file=model) or True,
                "Refitter.refit_cuda_engine": lambda s: True,
            }
        )
        refit.put_weights(fake.vendor(), object(), object(), self.folder(tmp_path), [])
        assert [call.partition("(")[0] for call in fake.record.calls] == [
            "OnnxParserRefitter.refit_from_file", "Refitter.refit_cuda_engine"
        ]  # fmt: skip
        assert made["file"] == str(tmp_path / "lowered.tensorrt.onnx")

    def test_a_refit_that_fails(self, tmp_path: Path) -> None:
        with pytest.raises(
            ToolkitError, match=r"could not put the weights .* into the stripped engine .*: no such layer"
        ):
            refit.put_weights(Fake().vendor(), object(), object(), self.folder(tmp_path), ["no such layer"])

    @pytest.mark.parametrize("name", ["lowered.tensorrt.onnx", "lowered.tensorrt.onnx.data"])
    def test_other_weights_are_refused(self, tmp_path: Path, name: str) -> None:
        engine = self.folder(tmp_path)
        (tmp_path / name).write_bytes(b"other")
        with pytest.raises(UsageError, match="is not the file of the build"):
            refit.weights_of(engine)
        (tmp_path / name).unlink()
        with pytest.raises(UsageError, match="is missing"):
            refit.weights_of(engine)

    def test_a_record_without_them(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not know that file"):
            refit.weights_of(self.folder(tmp_path, files={}))


_WEAK = {
    "FP16", "BF16", "INT8", "FP8", "INT4", "FP4", "PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS",
    "set_output_type", "reset_precision", "int8_calibrator", "set_dynamic_range", "set_calibration_profile",
}  # fmt: skip


def test_nothing_of_weak_typing_is_used() -> None:
    """The flags are gone in 11 and would be an AttributeError; on 10 they would silently change what computes."""
    assert _WEAK.isdisjoint(DESCRIPTION["BuilderFlag"])
    for path in ENGINES.glob("*.py"):
        tree = ast.parse(path.read_text())
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & _WEAK, path.name
    assert set(flags._BUILDER_FLAGS.values()) <= set(DESCRIPTION["BuilderFlag"])
    assert set(flags.HARDWARE.values()) < set(DESCRIPTION["HardwareCompatibilityLevel"])
    assert set(DTYPES) == set(DESCRIPTION["DataType"])
    assert f"Builder.create_network({1 << DESCRIPTION['NetworkDefinitionCreationFlag']['STRONGLY_TYPED']})" == STRONG


@pytest.mark.parametrize(("ours", "theirs"), [("Context", "IExecutionContext"), ("Engine", "ICudaEngine")])
def test_the_runners_fake_has_the_signatures_of_the_real_one(ours: str, theirs: str) -> None:
    """tests/engines/test_engine_runner.py proves the runner's calls against a fake; this proves the fake."""
    for name, method in vars(getattr(fake_vendor, ours)).items():
        if name.startswith("_") or not callable(method):
            continue
        shape = DESCRIPTION[theirs][name]
        given = list(inspect.signature(method).parameters)[1:]
        overloads = [[n.strip(" =") for n in o.strip("()").split(",") if n.strip()] for o in shape.split("; ")]
        optional = [[n for n in o.strip("()").split(",") if n.strip() and "=" not in n] for o in shape.split("; ")]
        assert given in overloads or (not given and [] in optional), (name, shape, given)


def test_a_wrong_call_is_refused_by_the_fake() -> None:
    fake = Fake()
    config = fake.trt.IBuilderConfig()
    with pytest.raises(TypeError, match="incompatible"):
        config.set_flag()
    with pytest.raises(TypeError, match="incompatible"):
        config.set_timing_cache(None, ignore=False)
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1 << 30
    with pytest.raises(AttributeError):
        config.set_flag(fake.trt.BuilderFlag.FP16)


_DESCRIBE = """
import json, sys, tensorrt
sys.path.insert(0, {folder!r})
import bindings
print(json.dumps(bindings.describe(tensorrt)))
"""


def test_the_record_is_what_the_real_bindings_hold(tensorrt_environment: dict[str, str]) -> None:
    code = _DESCRIBE.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], env=tensorrt_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == DESCRIPTION
