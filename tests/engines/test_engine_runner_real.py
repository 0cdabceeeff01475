"""EngineRunner against the real TensorRT-RTX: every name it uses exists, and the runtime as far as it goes here.

Without a GPU the real runtime reads headers and refuses; with one, an engine is built and run.
"""

import ast
import json
from pathlib import Path
from typing import Any

import fake_vendor
import pytest

from engines import cuda_buffers, engine_fit, engine_json, engine_runner, vendor
from engines.cuda_buffers import Buffers
from engines.engine_runner import EngineRunner
from engines.errors import BackendMissingError, UsageError
from engines.gpus import gpus
from engines.runner import TensorSpec


def _used(owner: str) -> set[str]:
    """Returns the attributes that the product reads off a vendor object, e.g. of `self._context`."""
    found = set()
    for source in (engine_runner, engine_fit, cuda_buffers):
        for node in ast.walk(ast.parse(Path(source.__file__).read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == owner:
                found.add(node.attr)
    return found


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return vendor.load("tensorrt-rtx").module
    except BackendMissingError as error:
        pytest.skip(str(error))


class TestRealNames:
    """What the fake allows, the real module has: names, parameter names, enum members."""

    @pytest.mark.parametrize(
        ("owner", "real"),
        [
            ("_context", "IExecutionContext"),
            ("_engine", "ICudaEngine"),
            ("engine", "ICudaEngine"),
            ("runtime", "Runtime"),
            ("TensorIOMode", "TensorIOMode"),
            ("modes", "TensorIOMode"),
            ("TensorLocation", "TensorLocation"),
            ("EngineValidity", "EngineValidity"),
        ],
    )
    def test_every_attribute_that_is_used_exists(self, rtx: Any, owner: str, real: str) -> None:
        used = _used(owner) - {"__members__"}
        assert used or owner in ("TensorIOMode",), f"nothing is read off {owner}: the test looks in the wrong place"
        assert not [name for name in used if not hasattr(getattr(rtx, real), name)]

    def test_every_module_attribute_that_is_used_exists(self, rtx: Any) -> None:
        used = _used("module")
        assert {"Runtime", "IOutputAllocator", "TensorIOMode"} <= used
        assert not [name for name in used if not hasattr(rtx, name)]

    @pytest.mark.parametrize(
        ("fake", "real"), [(fake_vendor.Context, "IExecutionContext"), (fake_vendor.Engine, "ICudaEngine")]
    )
    def test_the_fakes_parameters_are_the_real_ones(self, rtx: Any, fake: type, real: str) -> None:
        for name, method in vars(fake).items():
            if name.startswith("_"):
                continue
            text = getattr(getattr(rtx, real), name).__doc__
            for parameter in method.__code__.co_varnames[1 : method.__code__.co_argcount]:
                assert f"{parameter}: " in text, f"{real}.{name} has no parameter {parameter}"

    @pytest.mark.parametrize(
        "kind", ["TensorIOMode", "TensorLocation", "EngineValidity", "EngineInvalidityDiagnostics"]
    )
    def test_the_fakes_enums_are_the_real_ones(self, rtx: Any, kind: str) -> None:
        for member in getattr(fake_vendor, kind):
            assert int(getattr(rtx, kind).__members__[member.name]) == member.value

    def test_the_allocator_overrides_what_the_vendor_documents(self, rtx: Any) -> None:
        import torch

        allocator = cuda_buffers.output_allocator(rtx, Buffers(torch.device("cpu")), [])
        assert isinstance(allocator, rtx.IOutputAllocator)
        for name in ("reallocate_output", "reallocate_output_async", "notify_shape"):
            code = getattr(type(allocator), name).__code__
            words = ", ".join(code.co_varnames[: code.co_argcount])
            assert f"def {name}({words})" in rtx.IOutputAllocator.__doc__

    def test_the_real_runtime_reads_a_header_without_a_gpu(self, rtx: Any) -> None:
        heard: list[str] = []
        here = vendor.load("tensorrt-rtx")
        logger = here.logger(lambda severity, text: heard.append(text))
        runtime = rtx.Runtime(logger)
        with pytest.raises(BackendMissingError, match=r"TensorRT-RTX .* refuses x\.engine: .*malformed engine"):
            engine_fit.deserialize(here, runtime, b"not an engine" * 100, "x.engine", heard)

    def test_a_real_engine_is_written_recorded_and_refused_without_a_gpu(self, rtx: Any, tmp_path: Path) -> None:
        if gpus().found:
            pytest.skip("says what happens without a GPU, and this machine has one")
        built = _build(tmp_path, "tensorrt-rtx", 89)
        record = engine_json.read(built)
        assert record.inputs[0] == TensorSpec("a", "float16", ("batch", "length", 64))
        assert record.dims == {"batch": (1, 2, 4), "length": (1, 16, 64)}
        here, heard = engine_fit.installed(record, built.name), []
        logger = here.logger(lambda severity, text: heard.append(text))
        with pytest.raises(BackendMissingError, match=r"refuses model: .*GPU driver is installed"):
            engine_fit.deserialize(here, rtx.Runtime(logger), engine_json.read_plan(built, record), "model", heard)
        with pytest.raises(BackendMissingError, match=r"for SM 89; here .*driver"):
            EngineRunner(built)


def _build(folder: Path, target: str, sm: int) -> Path:
    """Builds a MatMul and writes its engine.json; returns the engine's path."""
    import onnx.parser

    from engines.build import build_engine
    from engines.profiles import derive

    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (float16[batch,length,64] a, float16[64,64] b) '
        "=> (float16[batch,length,64] y) { y = MatMul(a, b) }"
    )
    path = folder / "m.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    profile = derive({"a": ("batch", "length", 64), "b": (64, 64)}, {"batch": (1, 2, 4), "length": (1, 16, 64)})
    built = build_engine(path, folder / f"model.{sm}.engine", vendor=target, sm=sm, profile=profile)
    (folder / "engine.json").write_text(json.dumps({"schema": 1, "engines": [engine_json.entry(built)]}))
    return built.path


@pytest.mark.gpu
class TestOnGpu:
    """Builds for the GPU of this machine and runs what was built."""

    def test_engine_computes_what_onnx_runtime_computes(self, tmp_path: Path) -> None:
        from engines.environment import default_sms, default_target
        from engines.feeds import random_feeds
        from export.onnx_subject import OnnxSubject
        from export.parity.compare import compare
        from export.parity.precision import precision

        target = default_target()
        built = _build(tmp_path, target, default_sms(target)[0])
        runner, reference = EngineRunner(built), OnnxSubject(tmp_path / "m.onnx", "fp16", seed=0)
        for dims in ({"batch": 2, "length": 16}, {"batch": 1, "length": 1}, {"batch": 4, "length": 63}):
            feeds = random_feeds(runner.inputs, dims)
            (expected,) = reference.expected(feeds)
            verdict = compare(runner.run(feeds)["y"], expected, precision("fp16"))
            assert verdict.ok, (dims, verdict)
        with pytest.raises(UsageError, match=r"was built for 1\.\.64"):
            runner.run(random_feeds(runner.inputs, {"batch": 1, "length": 65}))
