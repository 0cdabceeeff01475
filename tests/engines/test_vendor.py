"""The two vendors: what is told when one is missing or broken, and that every call we make exists in both."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import vendor
from engines.errors import BackendMissingError, UsageError
from engines.vendor import Vendor

ENGINES = Path(vendor.__file__).parent


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'openvino'; choose one of tensorrt-rtx, tensorrt"):
        vendor.load("openvino")


@pytest.mark.parametrize(
    ("name", "package", "line"),
    [
        ("tensorrt-rtx", "tensorrt_rtx", "pip install 'tensorrt-rtx>=1.7'"),
        ("tensorrt", "tensorrt", "pip install 'attnproof[tensorrt]'"),
    ],
)
def test_a_missing_package_gives_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendMissingError) as caught:
        vendor.load(name)
    assert "is not installed" in str(caught.value)
    assert line in str(caught.value)


@pytest.fixture
def unimported() -> Iterator[None]:
    """Lets a test import fakes of both packages, and forgets them afterwards."""
    packages = ("tensorrt", "tensorrt_rtx")
    real = {name: sys.modules.pop(name) for name in packages if name in sys.modules}
    yield
    for name in packages:
        sys.modules.pop(name, None)
    sys.modules.update(real)


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise ImportError('libnvinfer.so.11: cannot open shared object file')", "libnvinfer.so.11: cannot open"),
        ("raise OSError('libcudart.so.13: wrong ELF class')", "OSError: libcudart.so.13"),
        ("import tensorrt_bindings_that_are_not_there", "No module named 'tensorrt_bindings_that_are_not_there'"),
        ("class ILogger: pass", "its module has no Builder, OnnxParser, __version__"),
    ],
)
def test_a_package_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendMissingError) as caught:
        vendor.load("tensorrt")
    assert "is installed but cannot be loaded" in str(caught.value)
    assert sentence in str(caught.value)
    assert "pip install 'attnproof[tensorrt]'" in str(caught.value)


@pytest.mark.usefixtures("unimported")
def test_an_rtx_that_cannot_be_told_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.0'\nclass Builder: ...\nOnnxParser = ILogger = Builder")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendMissingError, match="has no ComputeCapability"):
        vendor.load("tensorrt-rtx")


def test_a_library_that_gives_no_builder_is_missing_not_broken() -> None:
    def null(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt = Vendor("tensorrt", "TensorRT", SimpleNamespace(Builder=null), "11.4", None, True, "timing")
    with pytest.raises(BackendMissingError, match=r"made no builder here: .* It needs an NVIDIA GPU") as caught:
        tensorrt.builder(None)
    assert caught.value.exit_code == 3


def test_rtx_lists_its_architectures() -> None:
    pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
    rtx = vendor.load("tensorrt-rtx")
    assert rtx.sms is not None
    assert {75, 80, 86, 89, 120, 121} <= set(rtx.sms)
    assert rtx.sms == tuple(sorted(rtx.sms))
    assert (rtx.plugins, rtx.cache) == (False, "runtime")
    assert set(rtx.module.DataType.__members__) == set(vendor.DTYPES)


_DESCRIBE = """
import json, sys
from engines import vendor
from engines.errors import BackendMissingError
loaded = vendor.load("tensorrt")
module = loaded.module
enums = {n: {k: int(v) for k, v in c.__members__.items()} for n, c in vars(module).items() if hasattr(c, "__members__")}
classes = {
    n: {a: str(getattr(c, a).__doc__) for a in dir(c)} for n, c in vars(module).items() if isinstance(c, type)
}
loaded.logger(lambda severity, text: None)
loaded.progress_monitor(lambda phase, done, steps: None)
try:
    loaded.builder(loaded.logger(lambda severity, text: None))
    builder = "made"
except BackendMissingError as error:
    builder = str(error)
told = {"version": loaded.version, "sms": loaded.sms, "builder": builder, "enums": enums, "classes": classes}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def bindings(tensorrt_environment: dict[str, str]) -> dict[str, object]:
    """Returns what the real TensorRT 11.4 bindings hold; their libraries are stubs without content."""
    told = subprocess.run([sys.executable, "-c", _DESCRIBE], env=tensorrt_environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout))


def test_the_full_bindings_load_and_say_that_they_need_a_gpu(bindings: dict[str, object]) -> None:
    assert bindings["version"] == "11.4.0.106"
    assert bindings["sms"] is None
    assert "made no builder here" in str(bindings["builder"])


# What the code asks for first, by `Vendor.sms` or by looking whether it is there.
RTX_ONLY = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "set_runtime_cache"),
    ("Runtime", "engine_header_size"),
    ("Runtime", "get_engine_validity"),
}


def test_every_call_we_make_is_the_same_in_the_full_bindings(bindings: dict) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
    used = {node.attr for path in ENGINES.glob("*.py") for node in _attributes(path)}
    checked = set()
    for name, full in bindings["classes"].items():
        own = getattr(rtx, name, None)
        for attribute in sorted(used & set(dir(own))) if isinstance(own, type) else ():
            if (name, attribute) in RTX_ONLY or attribute.startswith("__"):
                continue
            assert attribute in full, f"{name}.{attribute}"
            signature = str(getattr(own, attribute).__doc__).strip().split("\n")[0]
            bare = signature.replace("tensorrt_rtx_bindings.tensorrt_rtx.", "")
            assert bare in full[attribute].replace("tensorrt_bindings.tensorrt.", ""), f"{name}.{attribute}"
            checked.add((name, attribute))
    assert {
        ("OnnxParser", "parse_from_file"),
        ("IOptimizationProfile", "set_shape"),
        ("ITensor", "is_shape_tensor"),
    } <= (checked)
    assert ("Builder", "build_serialized_network") in checked
    assert {name for name, attribute in RTX_ONLY if attribute in bindings["classes"][name]} == set()


def test_the_enums_of_both_agree(bindings: dict) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
    for name in ("DataType", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "ErrorCode"):
        own = {k: int(v) for k, v in getattr(rtx, name).__members__.items()}
        full = bindings["enums"][name]
        assert {k: full[k] for k in own} == own
    assert set(bindings["enums"]["DataType"]) == set(vendor.DTYPES)


def _attributes(path: Path) -> list[ast.Attribute]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
