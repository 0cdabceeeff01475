"""The fingerprints of a build: what moves them, what does not, and the words for a miss."""

import re
import sys
import tomllib
from pathlib import Path

import onnx
import small_models

from engines import environment, packages
from export import digest, own_code, subject
from export.spec import Spec


def test_the_request_depends_on_every_setting_and_on_the_gpus() -> None:
    base = digest.of_request(Spec())
    assert digest.difference(base, digest.of_request(Spec(out="elsewhere"))) is None
    assert digest.difference(base, digest.of_request(Spec(dtype="bf16"))) == 'dtype was unset, is "bf16"'
    moved = digest.difference(base, digest.of_request(Spec(), ["NVIDIA L4 (SM 89)"]))
    assert moved == "gpus was none, is NVIDIA L4 (SM 89)"
    assert digest.combine(base) != digest.combine(digest.of_request(Spec(seed=1)))


def test_versions_are_parts_and_absence_is_a_version() -> None:
    parts = digest.of_request(Spec())
    assert parts["torch"].startswith("2.")
    newer = {**parts, "torch": "9.9", "tensorrt": "11.4"}
    assert digest.difference(parts, newer) == f"torch was {parts['torch']}, is 9.9; tensorrt was not installed, is 11.4"


def test_every_package_that_is_depended_on_is_a_part() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert needed <= set(packages.PACKAGES)
    assert {"triton", "tensorrt"} <= set(packages.PACKAGES)
    assert set(digest.versions()) == set(environment.versions()) == set(packages.PACKAGES)


def test_an_onnx_file_counts_with_its_external_data(tmp_path: Path) -> None:
    model = small_models.attention()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    before = digest.of_onnx(tmp_path / "m.onnx")
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert digest.difference(before, digest.of_onnx(tmp_path / "m.onnx")) == "source file changed"


def test_a_factory_counts_with_its_weights_and_the_files_it_imports(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "scale_of_net.py").write_text("SCALE = 1.0\n")
    (tmp_path / "counted_net.py").write_text(
        "import scale_of_net\n" + small_models.FACTORY.replace("e // self.heads) ** -0.5", "e) * scale_of_net.SCALE")
    )
    spec = Spec(f"{tmp_path / 'counted_net.py'}:make")
    parts = subject.load(spec).parts()
    assert set(parts) == {"code", "packages", "weights", "example inputs"}
    assert subject.load(spec).parts() == parts
    reseeded = subject.load(Spec(spec.source, seed=1)).parts()
    assert digest.difference(parts, reseeded) == "weights changed; example inputs changed"
    (tmp_path / "scale_of_net.py").write_text("SCALE = 2.0\n")
    assert digest.difference(parts, subject.load(spec).parts()) == "code changed"


def test_other_modules_of_the_process_do_not_count(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "lone_net.py").write_text(small_models.FACTORY)
    (tmp_path / "a_stranger.py").write_text("HERE = True\n")
    spec = Spec(f"{tmp_path / 'lone_net.py'}:make")
    parts = subject.load(spec).parts()
    assert own_code.of(spec.source, ["lone_net"]).files == (tmp_path / "lone_net.py",)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("a_stranger")  # as an engine builder is loaded by `build` and not by `check`
    assert subject.load(spec).parts() == parts
    sys.modules.pop("a_stranger")


def test_every_way_to_import_a_file_of_ones_own_is_followed(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "ownpack"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("import json, torch, pytest, absent_module\n")
    (package / "net.py").write_text("from . import near\nfrom .deep.far import thing\nimport ownpack.late as late\n")
    (package / "near.py").write_text("def f():\n    import importlib\n    importlib.import_module('ownpack.named')\n")
    for name in ("deep/__init__", "deep/far", "late", "named", "unused", "computed"):
        (package / f"{name}.py").write_text("from export import spec\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = own_code.of("ownpack.net:make", ["torch.nn.modules.linear", "ownpack.computed", "builtins"])
    names = {str(path.relative_to(package)) for path in found.files}
    every = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert names == every - {"unused.py"}
    assert found.packages == ("pytest", "torch")


def test_a_form_counts_as_part_of_the_toolkit() -> None:
    assert subject.load(Spec("mha-rope")).parts() == {}
    assert len(digest.of_request(Spec("mha-rope"))["toolkit"]) == 64
