"""The fingerprints of a build: what moves them, what does not, and the words for a miss."""

from pathlib import Path

import onnx
import small_models

from export import digest, subject
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
    assert set(parts) == {"code", "weights", "example inputs"}
    assert subject.load(spec).parts() == parts
    reseeded = subject.load(Spec(spec.source, seed=1)).parts()
    assert digest.difference(parts, reseeded) == "weights changed; example inputs changed"
    (tmp_path / "scale_of_net.py").write_text("SCALE = 2.0\n")
    assert digest.difference(parts, subject.load(spec).parts()) == "code changed"


def test_a_form_counts_as_part_of_the_toolkit() -> None:
    assert subject.load(Spec("mha-rope")).parts() == {}
    assert len(digest.of_request(Spec("mha-rope"))["toolkit"]) == 64
