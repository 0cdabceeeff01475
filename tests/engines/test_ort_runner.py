"""OrtRunner: what it computes, what it refuses, and that nothing is replaced or printed behind the user's back."""

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from engines import ort_session, providers
from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.gpus import gpus
from engines.ort_runner import OrtRunner
from engines.providers import PROVIDERS, Provider, Trial
from engines.runner import TensorSpec


@pytest.fixture
def no_gpu() -> None:
    if gpus().found:
        pytest.skip("says what happens without a GPU, and this machine has one")


def model(text: str, opset: int = 18) -> bytes:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {text}').SerializeToString()


def matmul(dtype: str = "float") -> bytes:
    return model(f"g ({dtype}[batch,3] a, {dtype}[3,k] b) => ({dtype}[batch,k] y) {{ y = MatMul(a, b) }}")


def identity(dtype: str) -> bytes:
    return model(f"g ({dtype}[n] a) => ({dtype}[n] y) {{ y = Identity(a) }}")


def test_specs_carry_dtypes_fixed_and_symbolic_sizes() -> None:
    runner = OrtRunner(matmul("float16"))
    assert runner.inputs == (TensorSpec("a", "float16", ("batch", 3)), TensorSpec("b", "float16", (3, "k")))
    assert runner.outputs == (TensorSpec("y", "float16", ("batch", "k")),)


def test_an_axis_without_a_name_gets_one_of_its_own() -> None:
    runner = OrtRunner(model("g (float[?,3] a, float[?,3] b) => (float[?,3] y) { y = Add(a, b) }"))
    assert [spec.shape for spec in runner.inputs] == [("a.0", 3), ("b.0", 3)]


def test_computes_the_product() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(3, 4)
    runner = OrtRunner(matmul())
    np.testing.assert_array_equal(runner.run({"a": a, "b": b})["y"], a @ b)
    assert (runner.provider, runner.providers, runner.fallback) == ("cpu", ("CPUExecutionProvider",), ())


def test_outputs_keep_the_graphs_order_and_names() -> None:
    runner = OrtRunner(model("g (float[n] a) => (float[n] z, float[n] b) { z = Neg(a)  b = Abs(a) }"))
    outputs = runner.run({"a": np.array([-1, 2], np.float32)})
    assert {k: v.tolist() for k, v in outputs.items()} == {"z": [1, -2], "b": [1, 2]}
    assert list(outputs) == ["z", "b"]


@pytest.mark.parametrize("values", [[1.5, -2.0, 3.140625], []])
def test_bfloat16_goes_in_and_out_bit_for_bit(values: list[float]) -> None:
    array = np.array(values, ml_dtypes.bfloat16)
    result = OrtRunner(identity("bfloat16")).run({"a": array})["y"]
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result.view(np.uint16), array.view(np.uint16))


@pytest.mark.parametrize("dtype", ["float16", "double", "int64", "int32", "bool", "uint8"])
def test_other_dtypes_pass_through(dtype: str) -> None:
    array = np.array([0, 1, 1], {"double": "float64"}.get(dtype, dtype))
    result = OrtRunner(identity(dtype)).run({"a": array})["y"]
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_transposed_and_foreign_endian_feeds_are_read_by_value() -> None:
    a = np.arange(6, dtype=np.float32).reshape(3, 2).T
    b = np.eye(3, dtype=">f4")
    np.testing.assert_array_equal(OrtRunner(matmul()).run({"a": a, "b": b})["y"], a)


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float", np.float32)])
def test_a_result_owns_its_memory(dtype: str, kind: type) -> None:
    runner = OrtRunner(model(f"g ({dtype}[n] a) => ({dtype}[n] y, {dtype}[n] z) {{ y = Identity(a) z = Identity(a) }}"))
    given = np.ones(1000, kind)
    first = runner.run({"a": given})
    given[:] = 0
    runner.run({"a": np.zeros(1000, kind)})
    del runner
    assert all((first[name].astype(np.float32) == 1).all() for name in "yz")
    first["y"][:] = 5
    assert (first["z"].astype(np.float32) == 1).all()


def test_feeds_are_checked_before_the_session() -> None:
    with pytest.raises(UsageError, match=r"Input 'a' is float64; the model takes float32\. Cast it"):
        OrtRunner(matmul()).run({"a": np.zeros((2, 3)), "b": np.zeros((3, 4), np.float32)})


def test_latency_is_measured_over_the_asked_for_runs() -> None:
    runner = OrtRunner(matmul(), threads=1)
    feeds = {"a": np.ones((2, 3), np.float32), "b": np.ones((3, 4), np.float32)}
    latency = runner.latency(feeds, 5)
    assert latency.repeat == 5
    assert 0 < latency.p50_ms <= latency.p90_ms
    with pytest.raises(UsageError, match="repeat at least once"):
        runner.latency(feeds, 0)


def test_a_size_baked_in_at_export_is_an_error_of_the_run_that_says_so() -> None:
    baked = model(
        "g (float[n] a) => (float[m,2] y) <int64[2] shape = {3, 2}> { y = Reshape(a, shape) }",
    )
    with pytest.raises(ToolkitError, match="baked in at export") as caught:
        OrtRunner(baked).run({"a": np.zeros(8, np.float32)})
    assert caught.value.__cause__ is not None


class TestModel:
    def test_missing_file(self) -> None:
        with pytest.raises(UsageError, match=r"There is no model file nowhere\.onnx"):
            OrtRunner("nowhere.onnx")

    @pytest.mark.parametrize("content", [b"", b"not onnx at all", matmul()[:60]])
    def test_not_onnx_or_truncated(self, content: bytes, tmp_path) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"does not accept .*m\.onnx: .*must be a whole ONNX file") as caught:
            OrtRunner(path)
        assert caught.value.__cause__ is not None

    def test_unknown_operator_and_opset(self) -> None:
        with pytest.raises(UsageError, match="NoSuchOp"):
            OrtRunner(model("g (float[n] a) => (float[n] y) { y = NoSuchOp(a) }"))
        with pytest.raises(UsageError, match="opset"):
            OrtRunner(model("g (float[n] a) => (float[n] y) { y = Neg(a) }", opset=99))

    def test_no_kernel_is_a_missing_backend_not_a_bad_model(self) -> None:
        with pytest.raises(BackendMissingError, match=r"no cpu kernel .*Add.*--provider cuda"):
            OrtRunner(model("g (bfloat16[n] a) => (bfloat16[n] y) { y = Add(a, a) }"))

    def test_external_data_that_is_missing(self, tmp_path) -> None:
        weight = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
        parsed = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["": 18]> g (float[n,3] a) => (float[n,3] y) { y = MatMul(a, w) }'
        )
        parsed.graph.initializer.append(weight)
        path = tmp_path / "m.onnx"
        onnx.save_model(parsed, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        (tmp_path / "w.bin").unlink()
        with pytest.raises(UsageError, match=r"w\.bin"):
            OrtRunner(path)

    def test_only_tensors(self) -> None:
        sequence = model("g (seq(float[n]) a) => (float[?] y) <> { i = Constant<value_int=0>() y = SequenceAt(a, i) }")
        with pytest.raises(UsageError, match="'a' of the model is a seq"):
            OrtRunner(sequence)


class TestOptions:
    def test_threads_and_level_reach_the_session(self) -> None:
        options = ort_session.session_options(3, "basic", verbose=False)
        assert options.intra_op_num_threads == 3
        assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
        assert options.log_severity_level == 4

    @pytest.mark.parametrize("level", ort_session.OPTIMIZATION)
    def test_every_level_is_one_of_onnx_runtimes(self, level: str) -> None:
        assert OrtRunner(identity("float"), optimization=level).outputs

    def test_wrong_ones(self) -> None:
        with pytest.raises(UsageError, match="no optimisation level 'most'; choose one of all, layout"):
            OrtRunner(identity("float"), optimization="most")
        with pytest.raises(UsageError, match="0 threads"):
            OrtRunner(identity("float"), threads=0)
        with pytest.raises(UsageError, match="no provider 'gpu'; choose one of cpu, cuda, tensorrt"):
            OrtRunner(identity("float"), "gpu")


class TestProvider:
    """What is asked for is what runs."""

    def test_tensorrt_rtx_is_not_in_this_package(self) -> None:
        with pytest.raises(BackendMissingError, match=r"built without NvTensorRTRTX.*python -m export build") as caught:
            OrtRunner(matmul(), "tensorrt-rtx")
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize("name", ["cuda", "tensorrt"])
    def test_without_a_gpu_nothing_runs_elsewhere(self, name: str, capfd, no_gpu) -> None:
        with pytest.raises(BackendMissingError, match=f"provider {name} is not usable here.*To use it: "):
            OrtRunner(matmul(), name)
        assert capfd.readouterr() == ("", "")  # onnxruntime prints and logs on both

    def test_a_session_that_fell_back_is_refused_with_the_cause(self, monkeypatch) -> None:
        import onnxruntime

        class FellBack:
            def __init__(self, *args: object, **kwargs: object) -> None:
                assert kwargs["providers"][0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
                assert kwargs["enable_fallback"] == 0

            def get_providers(self) -> list[str]:
                return ["CPUExecutionProvider"]

        monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(providers, "try_provider", lambda name: Trial(False, f"cannot load lib{name}.so", {}))
        with pytest.raises(BackendMissingError, match=r"ONNX Runtime cannot load libcuda\.so\. To use it"):
            OrtRunner(matmul(), "cuda")

    def test_a_computing_node_elsewhere_is_refused_by_name(self) -> None:
        nodes = ("/Shape_1 (Shape)", "attn (Attention)", "mm (MatMul)", "s (Softmax)", "g (Gemm)")
        with pytest.raises(BackendMissingError, match=r"attn \(Attention\), mm \(MatMul\), s \(Softmax\) and 1 more"):
            ort_session.refuse_fallback(nodes, PROVIDERS["cuda"], "m.onnx")
        ort_session.refuse_fallback(("/Shape_1 (Shape)", "unnamed (Concat)"), PROVIDERS["cuda"], "m.onnx")
        ort_session.refuse_fallback(None, PROVIDERS["cuda"], "m.onnx")

    def test_nodes_elsewhere_are_read_off_the_session(self) -> None:
        runner = OrtRunner(matmul())
        other = Provider("other", "OtherExecutionProvider", (), "cpu", "")
        (node,) = ort_session.nodes_elsewhere(runner._session, other)
        assert node.endswith("(MatMul)")

    @pytest.mark.gpu
    def test_cuda_computes_what_the_cpu_computes(self) -> None:
        a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(3, 4)
        runner = OrtRunner(matmul(), "cuda")
        np.testing.assert_array_equal(runner.run({"a": a, "b": b})["y"], a @ b)
        assert runner.fallback == ()
        assert runner.latency({"a": a, "b": b}, 3).p50_ms > 0

    @pytest.mark.gpu
    def test_cuda_bfloat16(self) -> None:
        a = np.ones((2, 3), ml_dtypes.bfloat16)
        result = OrtRunner(matmul("bfloat16"), "cuda").run({"a": a, "b": a.T.copy()})["y"]
        assert result.astype(np.float32).tolist() == [[3, 3], [3, 3]]


def test_nothing_is_printed_by_a_failing_run(capfd) -> None:
    baked = model("g (float[n] a) => (float[m,2] y) <int64[2] shape = {3, 2}> { y = Reshape(a, shape) }")
    with pytest.raises(ToolkitError):
        OrtRunner(baked).run({"a": np.zeros(8, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_verbose_lets_onnx_runtime_log(capfd) -> None:
    OrtRunner(matmul(), verbose=True)
    assert "onnxruntime" in capfd.readouterr().err
