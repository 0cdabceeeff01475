"""Reading and writing ONNX files: each thing that can be wrong is made, and met with its own sentence."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import model_file, model_writer
from export.errors import ModelFileError, UsageError

WEIGHT = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)


def proto(opset: int = 18, domain: str = "", op: str = "MatMul", node_domain: str = "") -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])
    node = helper.make_node(op, ["x", "w"], ["y"], name="product", domain=node_domain)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(WEIGHT, "w")])
    imports = [helper.make_opsetid(domain, opset)]
    if node_domain:
        imports.append(helper.make_opsetid(node_domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def write(path: Path, model: onnx.ModelProto | None = None) -> Path:
    path.write_bytes((model or proto()).SerializeToString())
    return path


def external(path: Path, location: str = "weights.bin", offset: object = 0, length: object = WEIGHT.nbytes) -> Path:
    """Writes a model whose weight lies in `location`, and that file beside it if it is a plain name."""
    model = proto()
    w = model.graph.initializer[0]
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            w.external_data.add(key=key, value=str(value))
    if os.path.basename(location) == location and not (path.parent / location).exists():
        (path.parent / location).write_bytes(WEIGHT.tobytes())
    return write(path, model)


def weight(model: ir.Model) -> np.ndarray:
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        model_file.load(path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


# ---- reading


def test_a_good_model_loads(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    assert [n.name for n in model.graph] == ["product"]
    np.testing.assert_array_equal(weight(model), WEIGHT)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "does not exist")


def test_a_folder_names_the_models_in_it(tmp_path: Path) -> None:
    write(tmp_path / "inner.onnx")
    refused(tmp_path, "is a folder", "inner.onnx")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    refused(tmp_path / "m.onnx", "is empty")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello, this is a text file\n" * 20, "is not an ONNX model"),
        (b"\x00" * 64, "is not an ONNX model"),
        (b"\x0a\x03abc", "is not an ONNX model"),  # a valid protobuf of something else
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"PK\x03\x04" + b"\x00" * 200, "zip archive"),
    ],
)
def test_not_onnx(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", word)


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = proto().SerializeToString()
    for size in (5, 40, len(whole) // 2, len(whole) - 80, len(whole) - 1):
        (tmp_path / "m.onnx").write_bytes(whole[:size])
        refused(tmp_path / "m.onnx", "truncated")


def test_a_weight_with_too_few_bytes(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    refused(write(tmp_path / "m.onnx", model), "'w'", "16380 bytes", "16384")


def test_a_weight_with_too_few_values(tmp_path: Path) -> None:
    model = proto()
    w = model.graph.initializer[0]
    w.ClearField("raw_data")
    w.float_data.extend([1.0, 2.0])
    refused(write(tmp_path / "m.onnx", model), "'w'", "2 values", "4096")


def test_opset_missing(tmp_path: Path) -> None:
    model = proto()
    model.ClearField("opset_import")
    refused(write(tmp_path / "m.onnx", model), "names no opset")
    refused(write(tmp_path / "m.onnx", proto(domain="other.domain")), "names no opset for them")


def test_opset_too_old_and_unknown(tmp_path: Path) -> None:
    refused(write(tmp_path / "m.onnx", proto(opset=12)), "opset 12", "13")
    refused(write(tmp_path / "m.onnx", proto(opset=999)), "opset 999", "pip install -U onnx")
    model_file.load(write(tmp_path / "m.onnx", proto(opset=13)))


def test_ir_version_unknown(tmp_path: Path) -> None:
    model = proto()
    model.ir_version = 60
    refused(write(tmp_path / "m.onnx", model), "IR version 60", "pip install -U onnx")


def test_sparse_weights_are_not_dropped_silently(tmp_path: Path) -> None:
    model = proto()
    values = helper.make_tensor("sparse_w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [64]))
    refused(write(tmp_path / "m.onnx", model), "sparse_w")


def test_custom_operators_load_and_are_listed(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx", proto(op="Swish9", node_domain="acme")))
    assert model_file.custom_operators(model) == ("acme::Swish9",)
    assert model_file.custom_operators(model_file.load(write(tmp_path / "m.onnx"))) == ()
    own = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 18, "mine": 1]>
        g (float[n] x) => (float[n] y) { y = mine.twice (x) }
        <domain: "mine", opset_import: ["": 18, "acme": 1]> twice (a) => (b) { t = acme.Half (a)  b = Add (t, a) }"""
    )
    assert model_file.custom_operators(own) == ("acme::Half",)


def test_nan_weights(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    assert model_file.nan_weights(model) == ()
    broken = WEIGHT.copy()
    broken[3, 5] = np.nan
    model.graph.initializers["w"].const_value = ir.tensor(broken)
    assert model_file.nan_weights(model) == ("w",)


# ---- external data


def test_external_data_loads_lazily(tmp_path: Path) -> None:
    model = model_file.load(external(tmp_path / "m.onnx"))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    np.testing.assert_array_equal(weight(model), WEIGHT)


def test_external_data_is_found_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    model = model_file.load("m.onnx")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(weight(model), WEIGHT)


def test_external_data_missing(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    refused(tmp_path / "m.onnx", "'w'", "weights.bin", "copy them together")


def test_external_data_truncated(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes()[:-1])
    refused(tmp_path / "m.onnx", "'w'", "holds only 16383", "truncated")
    external(tmp_path / "m.onnx", length=None)
    refused(tmp_path / "m.onnx", "holds only 16383")
    external(tmp_path / "m.onnx", offset=16384)
    refused(tmp_path / "m.onnx", "32768")


def test_external_data_declared_shorter_than_its_shape(tmp_path: Path) -> None:
    refused(external(tmp_path / "m.onnx", length=100), "declares 100 bytes", "16384")


def test_external_data_with_a_bad_offset(tmp_path: Path) -> None:
    refused(external(tmp_path / "m.onnx", offset=-8), "-8")
    refused(external(tmp_path / "m.onnx", offset="many"), "'many'")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "C:\\secret", ""])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    refused(external(folder / "m.onnx", location=location), "not a path inside the model's folder")


def test_external_data_behind_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").symlink_to("../secret")
    refused(external(folder / "m.onnx"), "a link to", "copy the data file")
    (folder / "weights.bin").unlink()
    (folder / "inside").write_bytes(WEIGHT.tobytes())
    (folder / "weights.bin").symlink_to("inside")
    np.testing.assert_array_equal(weight(model_file.load(folder / "m.onnx")), WEIGHT)


def test_external_data_with_a_second_hard_link(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx")
    os.link(tmp_path / "weights.bin", tmp_path / "other")
    refused(tmp_path / "m.onnx", "hard links")


def test_more_than_two_gigabytes_load_without_being_read(tmp_path: Path) -> None:
    model = proto()
    w = model.graph.initializer[0]
    w.ClearField("raw_data")
    del w.dims[:]
    w.dims.extend([12_000_000, 64])
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value="big.bin")
    write(tmp_path / "m.onnx", model)
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(12_000_000 * 64 * 4)  # 3 GB, no block on disk
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(7).tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = model_file.load(tmp_path / "m.onnx")
    assert weight(loaded)[-1, -1] == 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


# ---- writing


def test_save_and_load_again(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    model_file.save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["m.onnx", "out.onnx"]
    np.testing.assert_array_equal(weight(model_file.load(tmp_path / "out.onnx")), WEIGHT)
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


def test_save_obeys_the_umask(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    old = os.umask(0o027)
    try:
        model_file.save(model, tmp_path / "out.onnx")
    finally:
        os.umask(old)
    assert (tmp_path / "out.onnx").stat().st_mode & 0o777 == 0o640


def test_large_weights_go_to_a_data_file(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    model_file.save(model, tmp_path / "out.onnx", inline_limit=16_000)
    assert names(tmp_path) == ["m.onnx", "out.onnx", "out.onnx.data"]
    assert (tmp_path / "out.onnx").stat().st_size < 1000
    assert isinstance(model.graph.initializers["w"].const_value, ir.TensorProtoTensor), "the input was changed"
    np.testing.assert_array_equal(weight(model_file.load(tmp_path / "out.onnx")), WEIGHT)


def test_external_data_is_copied_with_the_model(tmp_path: Path) -> None:
    model = model_file.load(external(tmp_path / "m.onnx"))
    other = tmp_path / "other"
    other.mkdir()
    model_file.save(model, other / "out.onnx")
    assert names(other) == ["out.onnx", "out.onnx.data"]
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_array_equal(weight(model_file.load(other / "out.onnx")), WEIGHT)


def test_saving_over_the_source_keeps_its_data_file(tmp_path: Path) -> None:
    model = model_file.load(external(tmp_path / "m.onnx", location="m.onnx.data"))
    before = (tmp_path / "m.onnx.data").stat()
    extra = np.ones((64, 64), np.float32)
    model.graph.register_initializer(ir.Value(name="extra", const_value=ir.tensor(extra, name="extra")))
    model_file.save(model, tmp_path / "m.onnx")
    after = (tmp_path / "m.onnx.data").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]
    np.testing.assert_array_equal(weight(model), WEIGHT)
    again = model_file.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(weight(again), WEIGHT)
    assert again.graph.initializers["extra"].const_value is not None


def test_saving_twice_leaves_one_data_file(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for value in (1.0, 2.0, 3.0):
        model = model_file.load(write(tmp_path / "m.onnx"))
        model.graph.initializers["w"].const_value = ir.tensor(np.full((64, 64), value, np.float32))
        model_file.save(model, folder / "o.onnx", inline_limit=0)
        assert len(names(folder)) == 2
        assert weight(model_file.load(folder / "o.onnx"))[0, 0] == value


def test_a_foreign_data_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "o.onnx.data").write_text("mine")
    model_file.save(model_file.load(write(tmp_path / "m.onnx")), tmp_path / "o.onnx", inline_limit=0)
    assert (tmp_path / "o.onnx.data").read_text() == "mine"
    assert weight(model_file.load(tmp_path / "o.onnx"))[0, 1] == 1


def test_external_tensor_in_an_attribute(tmp_path: Path) -> None:
    model = proto()
    w = model.graph.initializer.pop()
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value="weights.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="const"))
    model.graph.node[0].attribute.append(helper.make_attribute("value", w))
    write(tmp_path / "m.onnx", model)
    refused(tmp_path / "m.onnx", "'const.value'")
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    loaded = model_file.load(tmp_path / "m.onnx")
    (tmp_path / "o").mkdir()
    model_file.save(loaded, tmp_path / "o" / "o.onnx")
    assert names(tmp_path / "o") == ["o.onnx"]
    saved = model_file.load(tmp_path / "o" / "o.onnx")
    np.testing.assert_array_equal(saved.graph[0].attributes["value"].as_tensor().numpy(), WEIGHT)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    (tmp_path / "out.onnx").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 16_000):  # into the model file; into the data file
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(UsageError, match="free some space"):
                model_file.save(model, tmp_path / "out.onnx", inline_limit=limit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert names(tmp_path) == ["m.onnx", "out.onnx"]
        assert (tmp_path / "out.onnx").read_text() == "old"


def test_a_failure_between_data_and_model_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    model_file.save(model, tmp_path / "o.onnx", inline_limit=0)
    replace, calls = os.replace, []

    def second_fails(src: os.PathLike[str], dst: os.PathLike[str]) -> None:
        calls.append(dst)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(src, dst)

    model.graph.initializers["w"].const_value = ir.tensor(-WEIGHT)
    monkeypatch.setattr(model_writer.os, "replace", second_fails)
    with pytest.raises(UsageError, match="No space left on device"):
        model_file.save(model, tmp_path / "o.onnx", inline_limit=0)
    assert names(tmp_path) == ["m.onnx", "o.onnx", "o.onnx.data"]
    np.testing.assert_array_equal(weight(model_file.load(tmp_path / "o.onnx")), WEIGHT)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    for path, word in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "o.onnx", "create it first"),
        (tmp_path / "m.onnx" / "o.onnx", "no folder"),
    ):
        with pytest.raises(UsageError, match=word):
            model_file.save(model, path)
    assert names(tmp_path) == ["m.onnx"]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    model = model_file.load(write(tmp_path / "m.onnx"))
    # /proc refuses new files even to root, for whom a folder's mode means nothing.
    folder = Path("/proc")
    if os.geteuid() != 0 or not folder.is_dir():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
    with pytest.raises(UsageError, match="check the folder and its permissions"):
        model_file.save(model, folder / "o.onnx")


def test_a_data_file_that_vanished_is_named(tmp_path: Path) -> None:
    model = model_file.load(external(tmp_path / "m.onnx"))
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "o").mkdir()
    with pytest.raises(UsageError, match=r"weights\.bin"):
        model_file.save(model, tmp_path / "o" / "o.onnx")
    assert names(tmp_path / "o") == []
