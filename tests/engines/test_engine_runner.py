"""EngineRunner: what it refuses before loading, the calls it makes, and that every vendor name it uses exists.

The flow runs against `fake_vendor`, which computes at the addresses it is given; the real runtime is tried as far as it
goes without a GPU, and whole where there is one.
"""

import json
from pathlib import Path
from typing import Any

import fake_vendor
import ml_dtypes
import numpy as np
import pytest
from fake_vendor import EngineValidity, State, Tensor, TensorIOMode, TensorLocation

from engines import engine_runner, vendor
from engines.cuda_buffers import Buffers
from engines.engine_json import digest
from engines.engine_runner import EngineRunner
from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.gpus import Gpu, Gpus
from engines.runner import TensorSpec

ADA = Gpus((Gpu("NVIDIA L4", 89, 1 << 30),), "13.0", None)
PROFILE = ((1, 1, 3), (2, 4, 3), (8, 16, 3))


def tensors(dtype: str = "FLOAT") -> list[Tensor]:
    return [
        Tensor("x", TensorIOMode.INPUT, dtype, (-1, -1, 3), PROFILE),
        Tensor("y", TensorIOMode.OUTPUT, dtype, (-1, -1, 3)),
    ]


def folder(path: Path, dtype: str = "float32", **changes: Any) -> Path:
    """Writes an engine.json and a file that stands for the engine; returns the engine's path."""
    engine = path / "model.sm89.engine"
    engine.write_bytes(b"plan")
    shape = ["batch", "length", 3]
    entry = {
        "file": engine.name,
        "sha256": digest(engine),
        "vendor": "tensorrt-rtx",
        "version": "1.7.1.116",
        "sm": 89,
        "inputs": [{"name": "x", "dtype": dtype, "shape": shape}],
        "outputs": [{"name": "y", "dtype": dtype, "shape": shape}],
        "profile": {"dims": {"batch": [1, 2, 8], "length": [1, 4, 16]}, "inputs": {}},
    } | changes
    (path / "engine.json").write_text(json.dumps({"schema": 1, "engines": [entry]}))
    return engine


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that opens an EngineRunner on the fake vendor, on a machine with one Ada GPU."""
    import torch

    def load(
        state: State,
        name: str = "tensorrt-rtx",
        seen: Gpus = ADA,
        device: int = 0,
        runtime_cache: Path | None = None,
        **changes: Any,
    ) -> EngineRunner:
        dtype = {"BF16": "bfloat16", "HALF": "float16"}.get(state.tensors[0].dtype, "float32")
        monkeypatch.setattr(vendor, "load", lambda asked: fake_vendor.make(state, asked))
        monkeypatch.setattr(engine_runner, "gpus", lambda: seen)
        monkeypatch.setattr(engine_runner, "_device", lambda number: torch.device("cpu"))
        return EngineRunner(
            folder(tmp_path, dtype, **{"vendor": name} | changes), device=device, runtime_cache=runtime_cache
        )

    return load


class TestRefusals:
    """In this order: the files, the builder, the GPU. Each sentence says what was built, what is here, what to do."""

    def test_no_engine_and_no_engine_json(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"There is no engine .*model\.engine"):
            EngineRunner(tmp_path / "model.engine")
        (tmp_path / "model.engine").write_bytes(b"x")
        with pytest.raises(UsageError, match=r"There is no .*engine\.json: an engine says nothing about itself"):
            EngineRunner(tmp_path / "model.engine")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "engines": [{"file": 3}]}'])
    def test_damaged_engine_json(self, tmp_path: Path, text: str) -> None:
        engine = folder(tmp_path)
        (tmp_path / "engine.json").write_text(text)
        with pytest.raises(UsageError, match=r"engine\.json is damaged or was not written by this toolkit"):
            EngineRunner(engine)

    def test_engine_json_of_another_schema(self, tmp_path: Path) -> None:
        engine = folder(tmp_path)
        (tmp_path / "engine.json").write_text('{"schema": 2, "engines": []}')
        with pytest.raises(UsageError, match="has schema 2, and this version of the toolkit reads 1"):
            EngineRunner(engine)

    def test_an_engine_that_engine_json_does_not_know(self, tmp_path: Path) -> None:
        other = folder(tmp_path).rename(tmp_path / "other.engine")
        with pytest.raises(UsageError, match=r"does not know other\.engine; its engines are model\.sm89\.engine"):
            EngineRunner(other)

    def test_a_changed_engine(self, tmp_path: Path) -> None:
        engine = folder(tmp_path)
        engine.write_bytes(b"plan of another build")
        with pytest.raises(UsageError, match="its sha256 differs"):
            EngineRunner(engine)

    def test_a_builder_that_is_not_installed(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(vendor.importlib, "import_module", _not_found)
        with pytest.raises(BackendMissingError, match=r"TensorRT-RTX is not installed.*pip install"):
            EngineRunner(folder(tmp_path))

    def test_another_version(self, loaded) -> None:
        with pytest.raises(
            BackendMissingError,
            match=r"was built with TensorRT-RTX 1\.6\.0\.1 for SM 89; you have TensorRT-RTX 1\.7\.1\.116.*"
            r"Rebuild with: python -m export build SOURCE --target tensorrt-rtx --sm 89",
        ):
            loaded(State(tensors()), version="1.6.0.1")

    def test_no_gpu(self, loaded) -> None:
        seen = Gpus((), None, "no NVIDIA driver is installed (libcuda.so.1 is not found)")
        with pytest.raises(BackendMissingError, match=r"for SM 89; here no NVIDIA driver is installed") as caught:
            loaded(State(tensors()), seen=seen)
        assert caught.value.exit_code == 3

    def test_another_gpu(self, loaded) -> None:
        seen = Gpus((Gpu("NVIDIA GeForce RTX 5090", 120, 1),), "13.0", None)
        with pytest.raises(BackendMissingError, match=r"for SM 89; you have NVIDIA GeForce RTX 5090, SM 120.*--sm 120"):
            loaded(State(tensors()), seen=seen)
        with pytest.raises(BackendMissingError, match="There is no GPU 1; this machine has 1"):
            loaded(State(tensors()), device=1)

    def test_a_pytorch_without_cuda(self, tmp_path: Path, monkeypatch) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(vendor, "load", lambda name: fake_vendor.make(State(tensors())))
        monkeypatch.setattr(engine_runner, "gpus", lambda: ADA)
        with pytest.raises(BackendMissingError, match="Install the CUDA build"):
            EngineRunner(folder(tmp_path))

    def test_a_header_the_runtime_refuses(self, loaded) -> None:
        state = State(tensors(), validity=EngineValidity.INVALID, diagnostics=6)
        with pytest.raises(BackendMissingError, match=r"refuses .*: unsupported cc, old cuda driver\. Update"):
            loaded(state)
        assert state.calls == []  # not loaded

    def test_a_suboptimal_one_runs_and_is_reported(self, loaded, caplog) -> None:
        loaded(State(tensors(), validity=EngineValidity.SUBOPTIMAL, diagnostics=4))
        assert "runs here, but not at its best: old cuda driver" in caplog.text

    def test_full_tensorrt_has_no_header_check(self, loaded) -> None:
        state = State(tensors(), validity=EngineValidity.INVALID)
        assert loaded(state, "tensorrt").provider == "tensorrt"

    def test_what_the_runtime_logs_is_the_reason(self, loaded) -> None:
        state = State(tensors(), loads=False, says="magic tag differs.")
        with pytest.raises(BackendMissingError, match=r"could not load .*: magic tag differs\. Build it again"):
            loaded(state)

    def test_no_memory_for_a_context(self, loaded) -> None:
        with pytest.raises(ToolkitError, match="want of GPU memory"):
            loaded(State(tensors(), context=False))


class TestRun:
    def test_specs_take_symbolic_names_from_the_record(self, loaded) -> None:
        runner = loaded(State(tensors("HALF")))
        assert runner.inputs == (TensorSpec("x", "float16", ("batch", "length", 3)),)
        assert runner.outputs == (TensorSpec("y", "float16", ("batch", "length", 3)),)
        assert (runner.provider, runner.fallback) == ("tensorrt-rtx", ())

    def test_axes_without_a_recorded_name(self, loaded) -> None:
        runner = loaded(State(tensors()), inputs=[], outputs=[])
        assert runner.inputs[0].shape == ("x.0", "x.1", 3)

    @pytest.mark.parametrize(
        ("kind", "dtype"), [("FLOAT", np.float32), ("HALF", np.float16), ("BF16", ml_dtypes.bfloat16)]
    )
    def test_values(self, loaded, kind: str, dtype: type) -> None:
        runner = loaded(State(tensors(kind)))
        for shape in ((2, 4, 3), (1, 1, 3), (8, 16, 3)):
            x = (np.arange(np.prod(shape)).reshape(shape) + 1).astype(dtype)
            y = runner.run({"x": x})["y"]
            assert y.dtype == dtype
            np.testing.assert_array_equal(y.astype(np.float32), 2 * x.astype(np.float32))

    def test_read_only_and_strided_feeds(self, loaded) -> None:
        runner = loaded(State(tensors()))
        x = np.broadcast_to(np.float32(3), (2, 2, 3))
        assert (runner.run({"x": x})["y"] == 6).all()

    def test_order_of_calls(self, loaded) -> None:
        state = State(tensors())
        loaded(state).run({"x": np.zeros((2, 4, 3), np.float32)})
        assert state.calls == [
            "deserialize b'plan'",
            "create_execution_context",
            "set_input_shape x [2, 4, 3]",
            "set_tensor_address x",
            "infer_shapes",
            "set_tensor_address y",
            "execute 0",
        ]

    def test_the_profile_that_fits_is_chosen(self, loaded) -> None:
        state = State(tensors())
        for tensor in state.tensors:
            tensor.further = (((1, 64, 3), (1, 64, 3), (1, 99, 3)),)
        runner = loaded(state)
        for shape in ((2, 4, 3), (1, 80, 3), (1, 70, 3), (2, 4, 3)):
            x = np.ones(shape, np.float32)
            np.testing.assert_array_equal(runner.run({"x": x})["y"], x + x)
        chosen = [call for call in state.calls if call.startswith("set_optimization_profile")]
        assert chosen == ["set_optimization_profile 1", "set_optimization_profile 0"]
        with pytest.raises(UsageError, match=r"was built for 1\.\.8\..* Its other profiles \(1\) do not"):
            runner.run({"x": np.ones((9, 80, 3), np.float32)})

    @pytest.mark.parametrize(
        ("shape", "dim", "span"), [((9, 4, 3), "batch", "1:2:9"), ((2, 17, 3), "length", "1:4:17")]
    )
    def test_outside_the_profile_nothing_is_enqueued(self, loaded, shape, dim: str, span: str) -> None:
        state = State(tensors())
        runner = loaded(state)
        before = len(state.calls)
        with pytest.raises(
            UsageError, match=rf"\({dim}\) is {max(shape)}; .* was built for 1\.\..*--shapes {dim}={span}"
        ):
            runner.run({"x": np.zeros(shape, np.float32)})
        assert len(state.calls) == before

    def test_feeds_are_checked_first(self, loaded) -> None:
        with pytest.raises(UsageError, match=r"Cast it: array\.astype\(np\.float32\)"):
            loaded(State(tensors())).run({"x": np.zeros((2, 4, 3))})

    def test_an_output_whose_size_only_the_run_tells(self, loaded) -> None:
        state = State(tensors("HALF"), unknown_output=True)
        runner = loaded(state)
        x = np.arange(12, dtype=np.float16).reshape(2, 2, 3)
        np.testing.assert_array_equal(runner.run({"x": x})["y"], 2 * x)
        np.testing.assert_array_equal(runner.run({"x": x[:1]})["y"], 2 * x[:1])
        assert "set_output_allocator y" in state.calls
        assert "set_tensor_address y" not in state.calls

    def test_no_memory_for_such_an_output(self, loaded, monkeypatch) -> None:
        runner = loaded(State(tensors(), unknown_output=True))

        import torch

        def full(size: int, *, dtype, device):
            if dtype == torch.uint8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return empty(size, dtype=dtype, device=device)

        empty = torch.empty
        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(ToolkitError, match=r"could not run: There is no memory on cpu for uint8.*out of memory"):
            runner.run({"x": np.zeros((1, 1, 3), np.float32)})

    def test_shape_tensors_stay_on_the_host(self, loaded, monkeypatch) -> None:
        state = State(tensors())
        state.tensors.insert(1, Tensor("sizes", TensorIOMode.INPUT, "INT64", (2,), (), TensorLocation.HOST))
        runner = loaded(state)
        hosts = []
        upload = Buffers.upload

        def watched(self: Buffers, array, dtype: str, *, host: bool = False):
            hosts.append(host)
            return upload(self, array, dtype, host=host)

        monkeypatch.setattr(Buffers, "upload", watched)
        runner.run({"x": np.ones((1, 1, 3), np.float32), "sizes": np.array([700, 1])})
        assert hosts == [False, True]

    def test_failures_of_the_runtime_carry_its_log(self, loaded) -> None:
        x = {"x": np.zeros((2, 4, 3), np.float32)}
        with pytest.raises(ToolkitError, match=r"TensorRT-RTX could not run for .*: illegal address"):
            loaded(State(tensors(), runs=False, says="illegal address")).run(x)
        with pytest.raises(ToolkitError, match=r"refused shape \[2, 4, 3\] of input 'x'.*: it logged no reason"):
            loaded(State(tensors(), refuse_shape=True)).run(x)

    def test_latency_enqueues_once_a_run(self, loaded) -> None:
        state = State(tensors())
        latency = loaded(state).latency({"x": np.zeros((2, 4, 3), np.float32)}, repeat=5)
        assert state.calls.count("execute 0") == 5 + 3
        assert state.calls.count("set_tensor_address x") == 1
        assert 0 < latency.p50_ms <= latency.p90_ms


def _not_found(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class TestCompatibility:
    """What an engine was built to run on besides the very same GPU and version."""

    @pytest.mark.parametrize(
        ("version", "runs"), [("1.7.1.116", True), ("1.6.9", True), ("1.10.0", False), ("0.9", False)]
    )
    def test_a_version_compatible_engine_runs_on_later_versions_of_its_major(self, loaded, version, runs) -> None:
        options = {"version": version, "flags": {"version_compatible": True}}
        if runs:
            runner = loaded(State(tensors()), "tensorrt", **options)
            assert runner._runtime.engine_host_code_allowed is True
            return
        with pytest.raises(BackendMissingError, match=r"later ones of the same major.*Rebuild with"):
            loaded(State(tensors()), "tensorrt", **options)

    def test_no_other_engine_may_bring_host_code(self, loaded) -> None:
        assert not hasattr(
            loaded(State(tensors()), "tensorrt", version="1.7.1.116")._runtime, "engine_host_code_allowed"
        )
        with pytest.raises(BackendMissingError, match="engines belong to one version"):
            loaded(State(tensors()), "tensorrt", version="1.6.9")

    @pytest.mark.parametrize(
        ("level", "sm", "runs"),
        [
            ("ampere-plus", 120, True),
            ("ampere-plus", 80, True),
            ("ampere-plus", 75, False),
            ("same-compute-capability", 90, False),
            (None, 90, False),
        ],
    )
    def test_hardware_compatibility(self, loaded, level: str | None, sm: int, runs: bool) -> None:
        seen = Gpus((Gpu("NVIDIA X", sm, 1),), "13.0", None)
        flags = {"hardware_compatibility": level} if level else {}
        options = {"version": "1.7.1.116", "seen": seen, "flags": flags}
        if runs:
            loaded(State(tensors()), "tensorrt", **options)
            return
        with pytest.raises(BackendMissingError, match=rf"you have NVIDIA X, SM {sm}\. Rebuild with: .* --sm {sm}"):
            loaded(State(tensors()), "tensorrt", **options)

    def test_a_stripped_engine_gets_its_weights_first(self, loaded, monkeypatch) -> None:
        state = State(tensors())
        put = lambda here, engine, logger, path, heard: state.calls.append(f"weights for {path.name}")  # noqa: E731
        monkeypatch.setattr(engine_runner.refit, "put_weights", put)
        loaded(state, "tensorrt", version="1.7.1.116", flags={"strip_plan": True})
        assert state.calls == ["deserialize b'plan'", "weights for model.sm89.engine", "create_execution_context"]

    def test_the_command_that_rebuilds_starts_from_the_builds_own_spec(self, loaded, tmp_path: Path) -> None:
        (tmp_path / "spec.toml").write_text("")
        with pytest.raises(BackendMissingError) as caught:
            loaded(State(tensors()), version="1.6.0.1")
        assert f"Rebuild with: python -m export build --config {tmp_path / 'spec.toml'} --sm 89" in str(caught.value)

    def test_an_edited_record_is_refused_before_the_engine_is_read(self, loaded, tmp_path: Path) -> None:
        state = State(tensors())
        loaded(state)
        path = tmp_path / "engine.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "sha256": "0" * 64}))
        with pytest.raises(UsageError, match="its own sha256 differs"):
            EngineRunner(tmp_path / "model.sm89.engine")


class TestRuntimeCache:
    """The file of compiled kernels: read before the first run, written when asked, never in the way."""

    def test_a_new_file_and_a_second_run(self, loaded, tmp_path: Path, caplog) -> None:
        state = State(tensors())
        runner = loaded(state, runtime_cache=tmp_path / "kernels")
        assert state.calls == ["deserialize b'plan'", "create_execution_context with a runtime cache"]
        runner.run({"x": np.zeros((2, 4, 3), np.float32)})
        runner.keep_runtime_cache()
        assert (tmp_path / "kernels").read_bytes() == b"kernels"
        again = State(tensors())
        loaded(again, runtime_cache=tmp_path / "kernels")
        assert again.calls[1] == "deserialize kernels b'kernels'"
        assert caplog.text == ""
        assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.json", "kernels", "model.sm89.engine"]

    def test_kernels_of_another_gpu_are_compiled_again(self, loaded, tmp_path: Path, caplog) -> None:
        (tmp_path / "kernels").write_bytes(b"of another GPU")
        loaded(State(tensors()), runtime_cache=tmp_path / "kernels").keep_runtime_cache()
        assert "is damaged, or of another GPU, driver or version of TensorRT-RTX" in caplog.text
        assert (tmp_path / "kernels").read_bytes() == b"kernels"

    def test_where_there_is_none(self, loaded, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="TensorRT compiles its kernels while it builds and has no runtime cache"):
            loaded(State(tensors()), "tensorrt", runtime_cache=tmp_path / "kernels")
        with pytest.raises(UsageError, match="its folder does not exist"):
            loaded(State(tensors()), runtime_cache=tmp_path / "no/kernels")
        state = State(tensors())
        loaded(state).keep_runtime_cache()
        assert state.calls[-1] == "create_execution_context"

    def test_the_fake_has_the_names_of_the_real_one(self) -> None:
        rtx = pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
        assert {"create_runtime_cache", "set_runtime_cache"} <= set(dir(rtx.IRuntimeConfig))
        assert (
            "deserialize(self: tensorrt_rtx_bindings.tensorrt_rtx.IRuntimeCache, blob"
            in rtx.IRuntimeCache.deserialize.__doc__
        )
        assert "runtime_config: " in rtx.ICudaEngine.create_execution_context.__doc__


class TestResidentTensors:
    """A cache that an engine updates in place has one address, as input and as output, in every run."""

    def test_what_is_kept_is_written_to_where_it_was_and_read_from_there(self, loaded) -> None:
        state = State(tensors())
        runner = loaded(state)
        held = runner.zeros("x", (2, 4, 3))
        assert not runner.fetched("x", held).any()
        held += 1.5
        for times in (2, 4, 8):  # the fake engine doubles
            fetched, kept = runner.resume({}, {"x": held}, {"y": held})
            assert not fetched and kept["y"].data_ptr() == held.data_ptr()
            assert (runner.fetched("x", kept["y"]) == 1.5 * times).all()

    def test_what_is_kept_without_a_place_gets_its_own(self, loaded) -> None:
        runner = loaded(State(tensors()))
        x = np.ones((2, 4, 3), np.float32)
        fetched, kept = runner.resume({"x": x}, {}, {"y": None})
        assert not fetched and (runner.fetched("x", kept["y"]) == 2).all()
        again, _ = runner.resume({}, {"x": kept["y"]}, {})
        assert (again["y"] == 4).all()

    def test_sizes_of_what_is_carried_are_held_to_the_profile(self, loaded) -> None:
        runner = loaded(State(tensors()))
        with pytest.raises(UsageError, match=r"Axis 1 of input 'x' \(length\) is 17"):
            runner.resume({}, {"x": runner.zeros("x", (2, 17, 3))}, {})
