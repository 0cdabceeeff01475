"""A builder that is quick and needs no vendor, and processes that use the engine cache with it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx

from engines import build, cached, compute_capability, engine_fit, environment, profiles, vendor
from engines.build import BuiltEngine
from engines.cached import Obtained
from engines.flags import Flags
from engines.profiles import Profile
from engines.store import Store
from engines.vendor import Vendor

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"length": (1, 4, 16)}
LOG = [
    ("VERBOSE", "Layers:\nName: n, LayerType: kgen, Inputs: [], Outputs: [], TacticName: t, StreamId: 0, Metadata: ")
]


def save(path: Path, op: str = "Relu", extra: str = "") -> Path:
    """Writes a one-node model x [length, 8] -> y."""
    text = '<ir_version: 10, opset_import: ["": 20, "attnproof": 1]> g (float16[length, 8] x) => (float16[length, 8] y)'
    onnx.save(onnx.parser.parse_model(f"{text} {{ y = {op}(x) {extra} }}"), path)
    return path


def fake_vendor(version: str = "1.7.1.116", name: str = "tensorrt-rtx") -> Vendor:
    return Vendor(name, "TensorRT-RTX", None, version, (80, 89, 120), name == "tensorrt", "runtime")


def pretend(monkeypatch: object, version: str = "1.7.1.116", name: str = "tensorrt-rtx") -> list[int]:
    """Puts the quick builder in the place of the real one; returns the architectures it was asked for."""
    asked: list[int] = []
    here = fake_vendor(version, name)
    for module in (cached, compute_capability, engine_fit, environment):
        if hasattr(module, "load"):
            monkeypatch.setattr(module, "load", lambda wanted: here)
    monkeypatch.setattr(vendor, "load", lambda wanted: here)

    def build_engine(onnx_file: Path, out: Path, **options: object) -> BuiltEngine:
        asked.append(options["sm"])
        out.write_bytes(b"engine " * 40_000)
        return described(onnx_file, out, version=version, **options)

    monkeypatch.setattr(build, "build_engine", build_engine)
    return asked


def described(
    onnx_file: Path, out: Path, *, vendor: str, sm: int, profile: Profile, asked: Flags, version: str, **rest: object
) -> BuiltEngine:
    told = {"vendor": vendor, "version": version, "sm": sm, "seconds": 9.0, "size": out.stat().st_size, "memory": 7}
    told |= {"inputs": {"x": "float16"}, "outputs": {"y": "float16"}, "shapes": {"x": [-1, 8], "y": [-1, 8]}}
    return build.describe(out, build.graph.read(onnx_file), profile, asked, told, LOG)


def get(store: Store | None, model: Path, out: Path, sm: int = 89, **options: object) -> Obtained:
    """Gets the engine of a model written by `save`."""
    name = options.pop("vendor", "tensorrt-rtx")
    sizes = options.pop("sizes", SIZES)
    profile = profiles.derive({"x": ("length", 8)}, sizes)
    return cached.obtain(model, out, vendor=name, sm=sm, profile=profile, store=store, **options)


_CHILD = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
import pytest
import cached_builds
from engines import artifact, build, engine_json
from engines.store import Store
with pytest.MonkeyPatch.context() as patch:
    cached_builds.pretend(patch)
    quick = build.build_engine
    {before}
    got = cached_builds.get(Store(Path({root!r})), Path({model!r}), Path({out!r}))
    print(got.hit, got.why, flush=True)
"""


def start(root: Path, model: Path, out: Path, before: str = "pass") -> "subprocess.Popen[str]":
    """Starts a process that gets an engine; `before` is Python that may slow its builder down."""
    paths = [str(ROOT), str(ROOT / "tests/engines"), str(ROOT / "tests")]
    names = {"root": str(root), "model": str(model), "out": str(out)}
    code = _CHILD.format(paths=paths, before=before.replace("\n", "\n    "), **names)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
