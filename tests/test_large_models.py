"""Models beyond protobuf's 2 GiB: read, fused and written with their weights on disk, never in memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
import small_models
from onnx import TensorProto

from export import copy_range, model_file

ROWS = 9_000_000
SIZE = ROWS * 64 * 4
"""2.3 GB, a hole but for the last number."""

GRAPH = """<ir_version: 8, opset_import: ["": 17]>
g (int64[B,S] ids) => (float[B,S,64] y) <float c = {0.125}> {
  x = Gather(w, ids)
  t = Transpose<perm = [0, 2, 1]>(x)
  s = MatMul(x, t)
  m = Mul(s, c)
  p = Softmax<axis = -1>(m)
  z = MatMul(p, x)
  y = Add(z, bias)
}"""

RUN = """
import sys
import onnx, onnx_ir, onnxruntime, sympy, onnx_shape_inference, onnx.reference
from engines import memory
from export import cli
before = memory.peak()
code = cli.main(sys.argv[1:])
print(code, (memory.peak() - before) // 1024)
"""

BUILD = """
import sys
from engines import memory
from export import onnx_truth, ort_view, pipeline
onnx_truth.LARGE = onnx_truth.WIDEST = ort_view.LEAN_FROM = 1 << 20
report = pipeline.build(sys.argv[1], target="tensorrt-rtx", sm=(89,), out=sys.argv[2], cache=False,
                        shapes={"batch": "1:1:2", "length": "1:4:8"})
assert report.passed and 0 < report.memory <= memory.peak(), report.failures
print(memory.peak())
"""
WIDTH, WIDE = 1024, 4096


@pytest.fixture
def large(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(GRAPH)
    for name, dims, offset in (("w", [ROWS, 64], 0), ("bias", [64], SIZE)):
        tensor = TensorProto(name=name, data_type=1, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "big.bin"), ("offset", offset), ("length", 4 * int(np.prod(dims)))):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    with (tmp_path / "big.bin").open("wb") as file:
        file.seek(SIZE - 4)
        file.write(np.float32(7).tobytes())
        file.write(np.arange(64, dtype=np.float32).tobytes())
    if os.stat(tmp_path / "big.bin").st_blocks * 512 > SIZE // 2:
        pytest.skip("this file system has no holes: 2 GB would be written")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=True)
    code, grown = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    assert int(grown) < 150_000, f"{grown} KiB"
    return done.stdout


def weights(path: Path) -> tuple[float, list[float]]:
    held = model_file.load(path).graph.initializers
    return float(held["w"].const_value.numpy()[-1, -1]), held["bias"].const_value.numpy()[:3].tolist()


def test_a_model_of_more_than_two_gigabytes(large: Path) -> None:
    assert "1 found: 1 fused" in run("inspect", str(large))
    out = large.with_name("out.onnx")
    assert "1 found: 1 fused" in run("fuse", str(large), "-o", str(out))
    assert weights(out) == weights(large) == (7.0, [0.0, 1.0, 2.0])
    data = large.with_name("out.onnx.data")
    assert data.stat().st_size == SIZE  # the small one went into the model
    assert data.stat().st_blocks * 512 < SIZE // 2, "holes stay holes"
    assert out.stat().st_size < 10_000


def test_fusing_it_in_place_leaves_its_weights_where_they_are(large: Path) -> None:
    before = large.with_name("big.bin").stat()
    run("fuse", str(large), "-o", str(large))
    after = large.with_name("big.bin").stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size)
    assert sorted(p.name for p in large.parent.iterdir()) == ["big.bin", "m.onnx"]
    assert weights(large) == (7.0, [0.0, 1.0, 2.0])


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="copies go through memory on this system")
@pytest.mark.parametrize("kernel", ["copies", "refuses"])
def test_a_range_is_copied_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    content = bytearray(os.urandom(300_000))
    content[70_000:270_000] = bytes(200_000)
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(content[:70_000])
        file.seek(270_000)
        file.write(content[270_000:])
    if kernel == "refuses":

        def refuse(*_: object) -> int:
            raise OSError(18, "cross-device")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    for offset, length in ((0, 300_000), (69_999, 3), (80_000, 1000), (100_000, 190_000), (299_999, 1), (5, 0)):
        target = tmp_path / "target"
        with target.open("w+b") as file:
            file.write(b"head")
            copy_range.copy_range(source, offset, length, file)
            assert file.tell() == 4 + length
            file.write(b"tail")
        assert target.read_bytes() == b"head" + content[offset : offset + length] + b"tail"
    with (tmp_path / "target").open("w+b") as file, pytest.raises(OSError):
        copy_range.copy_range(source, 299_000, 2000, file)


def streamed(folder: Path, layers: int) -> Path:
    """Writes an fp16 attention with `layers` more pairs of matrices after it, 16 MiB each pair, as external data."""
    model = small_models.attention("float16", extra="h0 = MatMul(y, w)\n" + "".join(
        f"u{i} = MatMul(h{i}, up{i})\n h{i + 1} = MatMul(u{i}, down{i})\n" for i in range(layers)
    ) + f"z = Identity(h{layers})")  # fmt: skip
    model.graph.output[0].name = "z"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = WIDTH
    shapes = {"w": (small_models.WIDTH, WIDTH)}
    for i in range(layers):
        shapes |= {f"up{i}": (WIDTH, WIDE), f"down{i}": (WIDE, WIDTH)}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = (rng.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5).astype(np.float16)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    folder.mkdir()
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data")
    return folder / "m.onnx"


def test_a_build_holds_its_weights_once_or_twice(tmp_path: Path) -> None:
    peaks, held = [], []
    for layers in (1, 12):
        path, out = streamed(tmp_path / str(layers), layers), tmp_path / f"out{layers}"
        command = [sys.executable, "-c", BUILD, str(path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
        held.append((path.parent / "m.data").stat().st_size)
        for name in ("model.onnx", "fused.onnx", "lowered.tensorrt-rtx.onnx"):
            assert (out / name).stat().st_size < 2**17 and (out / f"{name}.data").stat().st_size >= held[-1]
    assert held[1] - held[0] > 170 << 20
    # The truth maps the weights in float32, twice their size; nothing is to lie beside it.
    assert peaks[1] - peaks[0] < 2.6 * (held[1] - held[0])
