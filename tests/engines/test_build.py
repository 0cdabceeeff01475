"""Builds that succeed, and every way in which they fail, with the real TensorRT-RTX."""

import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_models import BF16, DIMS, F16, F32, I64, attention, make, model, one, qkv, value, weight
from onnx import helper

from engines import build, graph, profiles, vendor
from engines.build import Progress, build_engine
from engines.errors import BackendMissingError, EngineBuildError, ToolkitError, UsageError
from engines.gpus import gpus

pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed (there is no wheel for this system)")

X = value("x", F16, "B", "S", 64)
Y = value("y", F16, "B", "S", 64)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fails(kind: type[ToolkitError], onnx_model: onnx.ModelProto, folder: Path, sm: int = 89, **options: object) -> str:
    """Returns the sentence of a build that must fail and leave nothing behind."""
    with pytest.raises(kind) as caught:
        make(onnx_model, folder, sm, **options)
    assert names(folder) == ["model.onnx"]
    return str(caught.value)


def custom(domain: str, op: str, function: onnx.FunctionProto | None = None) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], name="odd", domain=domain)
    return model([node], [X], [Y], domains=[domain] if domain else [], functions=[function] if function else [])


def test_what_an_engine_tells(tmp_path: Path) -> None:
    built = make(one(F16), tmp_path)
    assert built.path == tmp_path / "model.sm89.engine"
    assert built.path.stat().st_size == built.size > 10_000
    assert (built.vendor, built.sm, built.version) == ("tensorrt-rtx", 89, vendor.load("tensorrt-rtx").version)
    assert 0 < built.seconds < 60
    assert [str(spec) for spec in built.inputs] == [
        f"{n} float16[B, 4, {s}, 64]" for n, s in zip("qkv", "SNN", strict=True)
    ]
    assert [str(spec) for spec in built.outputs] == ["y float16[B, 4, S, 64]"]
    assert built.profile.inputs["q"].max == (8, 4, 512, 64)
    assert "VERBOSE: Layers:" in built.log
    assert names(tmp_path) == ["model.onnx", "model.sm89.engine"]
    assert built.path.stat().st_mode & 0o777 == (tmp_path / "model.onnx").stat().st_mode & 0o777


@pytest.mark.parametrize("sm", [75, 89, 121])
def test_an_engine_is_for_the_architecture_that_was_asked(tmp_path: Path, sm: int) -> None:
    plan = make(one(F16), tmp_path, sm).path.read_bytes()
    assert set(re.findall(rb"\bsm_?\d+", plan)) == {b"sm%d" % sm}


def test_progress_ends_where_it_should(tmp_path: Path) -> None:
    seen: list[Progress] = []
    make(one(F16), tmp_path, on_progress=seen.append)
    assert seen[0] == Progress("Building engine", 0, 6)
    assert seen[-1] == Progress("Building engine", 6, 6)
    assert all(0 <= p.done <= p.steps for p in seen)


def test_an_exception_in_the_progress_callback_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(one(F16), tmp_path, on_progress=interrupt)
    assert names(tmp_path) == ["model.onnx"]
    monkeypatch.setattr(
        build, "_START", 'import time; print(\'{"progress": ["x", 0, 1]}\', flush=True); time.sleep(60)'
    )
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        make(one(F16), tmp_path, on_progress=interrupt)
    assert time.monotonic() - start < 30


def test_several_architectures_build_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(one(F16), path)
    profile = profiles.derive({i.name: i.shape for i in graph.read(path).inputs}, DIMS)
    built = {}

    def run(sm: int) -> None:
        built[sm] = build_engine(path, tmp_path / f"{sm}.engine", vendor="tensorrt-rtx", sm=sm, profile=profile)

    threads = [threading.Thread(target=run, args=(sm,)) for sm in (75, 89, 120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {sm: b.attentions["attn"].fused for sm, b in built.items()} == {75: True, 89: True, 120: True}


def test_external_data_is_read_from_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    w = weight("w", np.eye(64, dtype=np.float16))
    mm = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], [X], [Y], [w])
    onnx.save(mm, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    profile = profiles.derive({"x": ("B", "S", 64)}, DIMS)
    monkeypatch.chdir(tmp_path.parent)  # relative paths, as users give them
    built = build_engine(
        Path(tmp_path.name) / "model.onnx",
        Path(tmp_path.name) / "e",
        vendor="tensorrt-rtx",
        sm=89,
        profile=profile,
    )
    assert built.size > 64 * 64 * 2
    store = tmp_path.parent / f"{tmp_path.name}-store"  # model caches keep links to files of other names
    store.mkdir()
    path.rename(store / "0123")
    path.symlink_to(store / "0123")
    build_engine(path, tmp_path / "e", vendor="tensorrt-rtx", sm=89, profile=profile)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EngineBuildError, match=r"weight 'w' cannot be read: Failed to open file: .*weights\.bin"):
        build_engine(path, tmp_path / "f", vendor="tensorrt-rtx", sm=89, profile=profile)
    assert names(tmp_path) == ["e", "model.onnx"]


def test_warnings_reach_stdlib_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [attention("same", ["q", "k", "v"], "y"), attention("same", ["q2", "k2", "v2"], "y2")]
    outputs = [value(n, F16, "B", 4, "S", 64) for n in ("y", "y2")]
    with caplog.at_level(logging.WARNING, logger="engines"):
        make(model(nodes, [*qkv(F16), *qkv(F16, suffix="2")], outputs), tmp_path)
    assert any("A node named same already exists" in r.message for r in caplog.records)
    assert all(r.name == "engines.build" for r in caplog.records)


@pytest.mark.parametrize("sm", [90, 100, 12, 7])
def test_an_architecture_rtx_does_not_know(tmp_path: Path, sm: int) -> None:
    said = fails(UsageError, one(F16), tmp_path, sm)
    assert f"does not compile for SM {sm}" in said
    assert "it knows 75 (Turing), 80" in said


def test_bf16_is_refused_on_turing_before_building(tmp_path: Path) -> None:
    said = fails(UsageError, one(BF16), tmp_path, 75)
    assert "SM 75 (Turing) has no bfloat16 arithmetic; it starts with SM 80" in said
    cast = helper.make_node("Cast", ["x"], ["c"], to=BF16, name="down")
    back = helper.make_node("Cast", ["c"], ["y"], to=F16, name="up")
    assert "bfloat16" in fails(UsageError, model([cast, back], [X], [Y]), tmp_path, 75)


def test_full_tensorrt_needs_its_package_or_a_gpu(tmp_path: Path) -> None:
    if gpus().found:
        pytest.skip("NOT RUN: there is a GPU here, for which TensorRT may build")
    said = fails(BackendMissingError, one(F16), tmp_path, vendor="tensorrt")
    assert "pip install 'attnproof[tensorrt]'" in said or "--target tensorrt-rtx" in said


def test_files_that_are_no_model(tmp_path: Path) -> None:
    profile = profiles.derive({}, {})
    whole = one(F16).SerializeToString()
    for content, sentence in (
        (None, "cannot be read: No such file"),
        (b"garbage", "is no ONNX model"),
        (b"", "no ONNX"),
        (whole[:100], "is no ONNX model"),
    ):
        path = tmp_path / "model.onnx"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            build_engine(path, tmp_path / "e", vendor="tensorrt-rtx", sm=89, profile=profile)
        assert not (tmp_path / "e").exists()


def test_a_place_that_cannot_be_written_is_known_before_the_build(tmp_path: Path) -> None:
    onnx.save(one(F16), tmp_path / "model.onnx")
    profile = profiles.derive({n: ("B", 4, "S" if n == "q" else "N", 64) for n in "qkv"}, DIMS)
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        build_engine(tmp_path / "model.onnx", tmp_path / "no" / "e", vendor="tensorrt-rtx", sm=89, profile=profile)


def test_profiles_that_do_not_fit_the_file(tmp_path: Path) -> None:
    onnx.save(one(F16), tmp_path / "model.onnx")
    for inputs, sentence in (
        ({"q": ("B", 4, "S", 64)}, r"no shapes for input k float16\[B, 4, N, 64\]; it has q"),
        ({"q": ("B", 5, "S", 64), "k": (), "v": ()}, r"gives input q float16\[B, 4, S, 64\] the shape 1x5x1x64"),
        ({"q": ("B", 4, "S"), "k": (), "v": ()}, "the shape 1x4x1;"),
    ):
        with pytest.raises(UsageError, match=sentence):
            build_engine(
                tmp_path / "model.onnx",
                tmp_path / "e",
                vendor="tensorrt-rtx",
                sm=89,
                profile=profiles.derive(inputs, DIMS),
            )


@pytest.mark.parametrize(("domain", "op"), [("my.ops", "Foo"), ("my.ops", "Relu"), ("com.microsoft", "Relu")])
def test_custom_operators_are_refused_before_the_parser(tmp_path: Path, domain: str, op: str) -> None:
    # The parser looks up by op type alone: my.ops::Relu would silently be built as ONNX Relu.
    said = fails(UsageError, custom(domain, op), tmp_path)
    assert f"Node 'odd' is {domain}::{op}, which is no ONNX operator, and TensorRT-RTX takes no plugins." in said


def test_the_plugin_is_refused_on_rtx_by_its_contract(tmp_path: Path) -> None:
    said = fails(UsageError, custom("attnproof", "RotaryAttention"), tmp_path)
    assert "is the plugin attnproof::RotaryAttention" in said
    assert "Build with --target tensorrt," in said


def test_a_function_is_inlined_unless_it_is_named_like_an_operator(tmp_path: Path) -> None:
    def negate(name: str) -> onnx.FunctionProto:
        body = [helper.make_node("Neg", ["a"], ["r"], name="inner")]
        return helper.make_function("my", name, ["a"], ["r"], body, [helper.make_opsetid("", 23)])

    built = make(custom("my", "Negate", negate("Negate")), tmp_path)
    assert any("Neg" in layer.name for layer in built.layers)
    built.path.unlink()
    said = fails(UsageError, custom("my", "Relu", negate("Relu")), tmp_path)
    assert "calls the model's function my::Relu, and TensorRT-RTX would silently compute its own Relu" in said


def test_the_parser_names_every_node_it_refuses(tmp_path: Path) -> None:
    nodes = [
        attention("capped", ["q", "k", "v"], "a", softcap=5.0),
        helper.make_node("NoSuchOp", ["a"], ["b"], name="unknown"),
        helper.make_node("Det", ["b"], ["y"], name="det"),
    ]
    said = fails(EngineBuildError, model(nodes, qkv(F16), [value("y", F16, "B", 4)]), tmp_path)
    assert "node 'capped' (Attention): Setting softcap is not supported" in said
    assert "node 'unknown' (NoSuchOp): it has no importer for NoSuchOp." in said
    assert "node 'det' (Det): it does not support Det." in said
    assert "Cuda Runtime" not in said and "/_src/" not in said


def test_fp32_attention_that_may_not_be_taken_apart(tmp_path: Path) -> None:
    said = fails(EngineBuildError, one(F32), tmp_path)
    assert "no fused attention kernel on SM 89 for 'attn' (float32)" in said
    assert "TRT_decomposable=1" in said
    assert "'attn' (head size 8)" in fails(EngineBuildError, one(F16, head_size=8), tmp_path)


def test_a_mask_of_another_dtype(tmp_path: Path) -> None:
    said = fails(EngineBuildError, one(F16, mask=F32), tmp_path)
    assert "Input 0's element type (half) differs from input 1's element type (float)." in said
    assert "An Attention's float mask must have Q's dtype (here: 'attn')." in said
    assert "Myelin" not in said


def test_an_input_that_decides_shapes(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")
    said = fails(
        UsageError, model([node], [X, value("s", I64, 1)], [value("y", F16, "K")]), tmp_path, dims={"B": (1, 1, 1)}
    )
    assert "Input 's' decides shapes inside the graph" in said


def test_a_crash_of_the_builder_is_an_error_with_its_known_cause(tmp_path: Path) -> None:
    # One scaled product feeding two attention inputs segfaults tensorrt_rtx 1.7.1.116. Where a later version builds
    # this, lowering may stop avoiding it, and this test should go.
    nodes = [attention("a0", ["q", "k", "v"], "h"), attention("a1", ["h", "k", "v"], "y")]
    said = fails(EngineBuildError, model(nodes, qkv(F16), [value("y", F16, "B", 4, "S", 64)]), tmp_path)
    assert "crashed (SIGSEGV)" in said
    assert "'a0' and 'a1' both read 'k' with one scale" in said
    assert "give the node scale=1" in said
    x = value("x", F16, "B", 4, "S", 64)
    said = fails(
        EngineBuildError, model([attention("a", ["x"] * 3, "y")], [x], [value("y", F16, "B", 4, "S", 64)]), tmp_path
    )
    assert "'a' reads 'x' as Q and as K" in said


def test_the_cure_of_that_crash_works(tmp_path: Path) -> None:
    c = weight("c", np.array(0.125, np.float16))
    nodes = [helper.make_node("Mul", ["x", "c"], ["s"], name="scale"), attention("a", ["s", "x", "x"], "y", scale=1.0)]
    x = value("x", F16, "B", 4, "S", 64)
    built = make(model(nodes, [x], [value("y", F16, "B", 4, "S", 64)], [c]), tmp_path)
    assert built.attentions["a"].fused is True


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("raise SystemExit(7)", "exit status 7"),
        (
            "import os, signal; print('x', file=__import__('sys').stderr); os.kill(os.getpid(), signal.SIGKILL)",
            "out of memory",
        ),
    ],
)
def test_any_other_end_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, sentence: str
) -> None:
    monkeypatch.setattr(build, "_START", program)
    assert sentence in fails(EngineBuildError, one(F16), tmp_path)


_HANG = """
import json, sys, time
sys.path[:] = json.loads(sys.argv[1])
from engines import worker
worker.build = lambda *request: time.sleep(60)
worker.main()
"""


def test_a_worker_ends_when_its_parent_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", _HANG, json.dumps(sys.path)], stdin=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write("{}\n")
    process.stdin.close()
    assert process.wait(timeout=20) == 1


def test_an_engine_that_does_not_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("NOT RUN: this system has no /dev/full")
    reserve = build._reserve

    def full(out: Path) -> Path:
        path = reserve(out)
        path.unlink()
        path.symlink_to("/dev/full")
        return path

    monkeypatch.setattr(build, "_reserve", full)
    assert "cannot be written: No space left on device" in fails(UsageError, one(F16), tmp_path)
