"""The spec: one request, the same from flags, TOML and Python, refused early where it cannot be meant."""

import pytest

from export.errors import UsageError
from export.spec import TARGETS, Spec, read_toml, shapes_from


def refusal(call) -> str:
    with pytest.raises(UsageError) as raised:
        call()
    return str(raised.value)


def test_toml_reads_back_equal(tmp_path) -> None:
    spec = Spec(
        source='dir "x"/módulo.py:make', out="o", target="ort", dtype="bf16", opset=24, sm=(89, 120),
        shapes={"batch": (1, 2, 8)}, masked_rows="zero", require="all", seed=7, verify=False,
        further_profiles=("length=1",),
    )  # fmt: skip
    path = tmp_path / "spec.toml"
    path.write_text(spec.as_toml(), encoding="utf-8")
    assert read_toml(path) == spec


def test_paths_may_be_paths(tmp_path) -> None:
    spec = Spec(source=tmp_path / "m.onnx", out=tmp_path / "o", timing_cache=tmp_path / "t")
    assert spec == Spec(source=str(tmp_path / "m.onnx"), out=str(tmp_path / "o"), timing_cache=str(tmp_path / "t"))
    assert spec.is_onnx and Spec().with_values(spec.as_dict(), "here") == spec


def test_toml_takes_the_spellings_of_flags(tmp_path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('sm = "89,120"\nrequire = 2\nshapes = "batch=1:2:8,length=16"\nmasked-rows = "zero"\n')
    spec = read_toml(path)
    assert spec.sm == (89, 120)
    assert spec.require == "2"
    assert spec.shapes == {"batch": "1:2:8", "length": "16"}
    assert spec.masked_rows == "zero"


def test_unknown_toml_key_names_the_file_and_the_nearest_key(tmp_path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('dtpye = "fp16"\n')
    assert refusal(lambda: read_toml(path)) == f"{path}: there is no key 'dtpye'; did you mean 'dtype'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("opset = '23'", "opset is '23'; it must be a whole number"),
        ("verify = 1", "verify is 1; it must be true or false"),
        ("shapes = {batch = [1, 2]}", "shapes.batch is [1, 2]; write [min, opt, max]"),
        ("dtype = 'float16'", "dtype is 'float16'; choose from fp16, bf16, fp32."),
        ("target = 'tensorrt-rxt'", "did you mean 'tensorrt-rtx'?"),
        ("sm = ['8.9x']", "is no compute capability"),
        ("[", "is not TOML"),
    ],
)
def test_wrong_toml_values_are_named(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert expected in refusal(lambda: read_toml(path))


def test_missing_toml_is_a_usage_error(tmp_path) -> None:
    assert "cannot be read: No such file" in refusal(lambda: read_toml(tmp_path / "none.toml"))


@pytest.mark.parametrize("text", ["batch=8:2:1", "batch=1:9:8"])
def test_opt_outside_min_max_is_refused(text: str) -> None:
    assert "give min <= opt <= max" in refusal(lambda: shapes_from(text))
    name, _, sizes = text.partition("=")
    assert "give min <= opt <= max" in refusal(lambda: Spec(shapes={name: tuple(map(int, sizes.split(":")))}))


def test_shapes_may_name_dimensions_or_whole_inputs() -> None:
    spec = Spec(shapes={**shapes_from("length=16, x=1x1x64:2x16x64:8x16x64"), "batch": (1, 2, 8), "heads": 4})
    assert spec.shapes == {"length": "16", "x": "1x1x64:2x16x64:8x16x64", "batch": "1:2:8", "heads": "4"}
    assert spec.ranges().dims == {"length": (16, 16, 16), "batch": (1, 2, 8), "heads": (4, 4, 4)}
    assert spec.ranges().inputs["x"].opt == (2, 16, 64)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mha-rope", "mha-rope"),
        ("a/b/my model.onnx", "my_model"),
        ("a/b.py:make", "b.make"),
        ("package.module:make", "package.module.make"),
    ],
)
def test_the_folder_is_named_after_the_source(source: str, name: str) -> None:
    assert Spec(source).name == name
    assert Spec(source).folder.as_posix() == f"out/{name}"


def test_digest_moves_with_everything_but_out() -> None:
    base = Spec()
    changes = [
        {"source": "dit"}, {"target": "ort"}, {"dtype": "fp32"}, {"opset": 24}, {"exporter": "torchscript"},
        {"sm": (89,)}, {"shapes": {"batch": (1, 1, 1)}}, {"masked_rows": "zero"}, {"require": "all"},
        {"seed": 1}, {"verify": False},
    ]  # fmt: skip
    digests = {Spec(**change).digest() for change in changes}
    assert len(digests | {base.digest()}) == len(changes) + 1
    assert Spec(out="elsewhere").digest() == base.digest()


def test_targets_are_those_of_the_lowering() -> None:
    from export.lower import TARGETS as LOWERED

    assert set(LOWERED) == set(TARGETS)
