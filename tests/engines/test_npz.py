"""Arrays on disk: lossless for types numpy cannot name, never a pickle, written whole or not at all."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engines.errors import UsageError
from engines.npz import load_npz, save_npz
from engines.runner import TensorSpec


def test_round_trip_with_any_name(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    arrays = {
        "file": np.arange(3),  # a parameter's name in np.savez
        "/attn/out": np.ones((2, 0), np.float16),
        "scalar": np.array(True),
        "bf": np.array([1.5, np.nan, -0.0, 3e38], ml_dtypes.bfloat16),
    }
    save_npz(path, arrays)
    back = load_npz(path)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()
        assert back[name].shape == array.shape
    assert os.listdir(tmp_path) == ["y.npz"]


def test_plain_numpy_reads_bfloat16_as_the_docstring_says(tmp_path: Path) -> None:
    save_npz(tmp_path / "y.npz", {"y": np.array([1.5, 2], ml_dtypes.bfloat16)})
    with np.load(tmp_path / "y.npz", allow_pickle=False) as archive:
        assert archive["y"].view(ml_dtypes.bfloat16).astype(float).tolist() == [1.5, 2]


def test_the_model_says_what_raw_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    save_npz(path, {"x": np.array([1.5, 2], ml_dtypes.float8_e5m2)})
    spec = TensorSpec("x", "float8_e5m2", ("n",))
    assert load_npz(path, [spec])["x"].dtype == ml_dtypes.float8_e5m2
    assert load_npz(path)["x"].dtype == np.dtype("V1")


def _bad_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.npz"
    np.savez(good, x=np.zeros(1000))
    (folder / "text.npz").write_text("not a zip")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "cut.npz").write_bytes(good.read_bytes()[:-100])
    flipped = bytearray(good.read_bytes())
    flipped[400] ^= 0xFF
    (folder / "damaged.npz").write_bytes(flipped)
    np.savez(folder / "objects.npz", x=np.array([{}]))
    (folder / "folder.npz").mkdir()
    return {p.stem: p for p in folder.glob("*.npz")}


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "damaged", "objects", "folder"])
def test_a_bad_file_is_named(tmp_path: Path, kind: str) -> None:
    path = _bad_files(tmp_path)[kind]
    with pytest.raises(UsageError, match=rf"{kind}\.npz is not a \.npz file of plain arrays") as caught:
        load_npz(path)
    assert caught.value.__cause__ is not None


def test_missing_and_single_array(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        load_npz(tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", np.zeros(2))
    with pytest.raises(UsageError, match="a single array, which has no input name"):
        load_npz(tmp_path / "one.npy")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "y.npz"
    save_npz(path, {"y": np.zeros(2)})
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save_npz(path, {"y": np.ones(2)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["y.npz"]


def test_folder_that_is_missing_or_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Could not write .*nowhere"):
        save_npz(tmp_path / "nowhere" / "y.npz", {"y": np.zeros(2)})
    (tmp_path / "dir.npz").mkdir()
    with pytest.raises(UsageError, match="directory"):
        save_npz(tmp_path / "dir.npz", {"y": np.zeros(2)})
    assert os.listdir(tmp_path) == ["dir.npz"]
