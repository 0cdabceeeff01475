"""A whole bench of tiny attentions: every contender that this machine runs, every answer checked, the result kept."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from engines.gpus import gpus
from export import cli
from export.bench import (
    ceilings,
    clock,
    gpu_clock,
    graph_work,
    hand_built,
    measure,
    model_workload,
    shape_workload,
    shapes,
    tools,
)
from export.bench.contender import OURS, Contender, Opened
from export.bench.result import NOT_RUN, TIMED, WRONG, Result
from export.bench.run import Asked
from export.report import bench_plot, bench_summary, bench_table

TINY = (
    shapes.Shape("padded", 2, 24, 2, 2, 16),
    shapes.Shape("causal", 1, 16, 4, 2, 16),
    shapes.Shape("lengths", 2, 16, 2, 2, 16),
)
CEILINGS = ceilings.Ceilings(1e11, 1e10)


@pytest.fixture(scope="module", autouse=True)
def brief() -> Iterator[None]:
    """Few, short rounds: what is tested is what is said of them. Each of ONNX Runtime's model types takes as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "ROUND_SECONDS", 0.001)
        patch.setattr(measure, "SITTINGS", 2)
        patch.setattr(tools, "SUITED", ("bert",))
        patch.setattr(ceilings, "SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The JSON of a bench of both families, as `bench` writes it."""
    files = shape_workload.Files(tmp_path_factory.mktemp("bench"), verify=False)
    cases = []
    for shape, route in zip(TINY, ("torchscript-17", "dynamo-18", "dynamo-23"), strict=True):
        work = shape_workload.workload(shape, files, routes=(route,), threads=1, seed=0, flex=False)
        cases.append(measure.measured(work, CEILINGS, 0.2))
    result = Result("python -m export bench tiny", "2026-01-01", 0, "cpu", 1, "not pinned", 0.2, CEILINGS, tuple(cases))
    return dict(json.loads(json.dumps(result.as_json(), allow_nan=False)))


def rows(document: Mapping[str, object]) -> list[dict[str, object]]:
    return [row for case in document["cases"] for row in case["rows"]]  # type: ignore[attr-defined]


def test_every_contender_that_was_timed_is_right(document: dict[str, object]) -> None:
    by_status: dict[str, set[str]] = {}
    for row in rows(document):
        by_status.setdefault(str(row["status"]), set()).add(f"{row['name']}")
    assert WRONG not in by_status
    everyone = {"as exported", "attnproof", "onnxscript ort_fusions", "ONNX Runtime optimizer", "torch eager"}
    everyone |= {"torch SDPA FLASH", "torch SDPA MATH", "com.microsoft MultiHeadAttention"}
    everyone |= {"com.microsoft GroupQueryAttention", *(name for shape in TINY for name in hand_built.best(shape))}
    assert everyone <= by_status[TIMED]
    assert {"TensorRT, native attention", "TensorRT, attnproof's plugin"} <= by_status[NOT_RUN]


def test_what_was_not_run_has_a_reason_and_no_numbers(document: dict[str, object]) -> None:
    for row in rows(document):
        assert (row["status"] == TIMED) == (row["timing"] is not None) and bool(row["reason"]) == (
            row["status"] != TIMED
        )
        if row["status"] == TIMED:
            assert row["error"] is not None and 0 <= float(str(row["budget_used"])) <= 1


def test_the_json_is_of_schema_1_and_says_how_to_repeat_it(document: dict[str, object]) -> None:
    keys = {"schema", "kind", "command", "date", "seed", "device", "threads", "pinning", "seconds", "ceilings", "cases"}
    assert set(document) == keys | {"machine", "versions"}
    assert document["schema"] == 1 and {"torch", "onnx", "python"} <= set(document["versions"])  # type: ignore[call-overload]
    fields = {"p50_ms", "p90_ms", "p99_ms", "spread", "cpu_ms", "rounds", "calls"}
    timed = [row for row in rows(document) if row["timing"] is not None]
    assert all(set(row["timing"]) == fields for row in timed)  # type: ignore[call-overload]
    for case in document["cases"]:  # type: ignore[attr-defined]
        assert case["flops"] > 0 and case["bytes"] > 0 and case["floor_ms"] > 0
        base = next(r for r in case["rows"] if r["kind"] == "as exported")
        assert base["speedup"]["value"] == 1 and base["gflops"] == pytest.approx(
            case["flops"] / base["timing"]["p50_ms"] / 1e6
        )
        assert base["of_floor"] == pytest.approx(case["floor_ms"] / base["timing"]["p50_ms"])


def test_padded_keys_are_not_work(document: dict[str, object]) -> None:
    padded = document["cases"][0]  # type: ignore[index]
    assert 0 < padded["flops"] < TINY[0].flops()


def test_the_text_shows_every_row_its_unit_and_the_command(document: dict[str, object]) -> None:
    text = bench_table.render(document)
    assert text.startswith("python -m export bench tiny\n") and text.endswith("PASSED\n")
    for word in ("p50 ms", "GFLOP/s", "of floor", "MiB", "error/budget", "NOT RUN: TensorRT, native attention"):
        assert word in text
    assert [line.case["name"] for line in bench_summary.lines(document)] == [shape.name for shape in TINY]
    assert all(line.ours and line.hand and line.tool for line in bench_summary.lines(document))


def test_the_plots_are_svg_with_a_bar_and_a_dot_for_each_number(document: dict[str, object], tmp_path: Path) -> None:
    space = "{http://www.w3.org/2000/svg}"
    speedup, roofline = (ElementTree.parse(path).getroot() for path in bench_plot.write(document, tmp_path))
    found = bench_summary.lines(document)
    bars = sum(row is not None for one in found for row in (one.ours, one.hand, one.tool, one.contrib, one.torch))
    assert len(speedup.findall(f"{space}rect")) == 1 + bars + 5  # the ground and the legend
    assert len(roofline.findall(f"{space}circle")) == 2 * len(found)


def test_a_wrong_answer_is_wrong_however_fast(tmp_path: Path) -> None:
    files = shape_workload.Files(tmp_path, verify=False)
    work = shape_workload.workload(TINY[0], files, routes=("torchscript-17",), threads=1, seed=0, flex=False)
    right = work.contenders[0].open()

    def wrong() -> Opened:
        return Opened(right.call, lambda: {name: x + np.float32(1e-4) for name, x in right.outputs().items()})

    bad = Contender("attnproof", OURS, wrong, "torchscript-17", "lowered")
    case = measure.measured(replace(work, contenders=(work.contenders[0], bad)), CEILINGS, 0.05)
    assert [row.status for row in case.rows] == [TIMED, WRONG]
    assert case.rows[1].reason
    result = Result("bench", "2026-01-01", 0, "cpu", 1, "", 1, CEILINGS, (case,)).as_json()
    document = json.loads(json.dumps(result))
    assert bench_table.wrong(document) and bench_table.render(document).endswith("FAILED\n")


def test_a_file_is_benched_without_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "attention.onnx"
    path.write_bytes(hand_built.forms(TINY[0])["Attention-23 4-D, float mask"])
    asked = Asked(str(path), "bench", (), {"B": 2, "S": 8}, 1, 0.05, 0, True, False)
    (work,) = model_workload.workloads(asked, tmp_path)
    case = measure.measured(work, CEILINGS, 0.05)
    status = {row.name: row.status for row in case.rows}
    assert status["as exported"] == status["attnproof"] == TIMED
    assert case.sizes == {"B": 2, "S": 8} and case.flops == TINY[0].size * TINY[0].heads * 4 * 2 * 8 * 8


def test_products_of_a_graph_are_counted() -> None:
    import onnx_ir as ir

    text = """<ir_version: 10, opset_import: ["": 20]> g (float[B,S,6] x, float[6,4] w) => (float[B,S,S] y) {
        a = MatMul(x, w)
        t = Transpose<perm = [0, 2, 1]>(a)
        y = MatMul(a, t)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    found = graph_work.work(model, {"x": (2, 5, 6), "w": (6, 4)})
    assert found.flops == 2 * (2 * 5 * 4 * 6) + 2 * (2 * 5 * 5 * 4)
    assert found.bytes == 4 * (2 * 5 * 6 + 6 * 4 + 2 * 5 * 5)


def test_the_command_measures_writes_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.SETS, "cpu", TINY[1:2])
    words = ["bench", "--exports", "torchscript-17", "--threads", "1", "--seconds", "0.1", "--no-flex", "--no-verify"]
    assert cli.main([*words, "-o", str(tmp_path / "r.json"), "--plots", str(tmp_path / "plots")]) == 0
    kept = json.loads((tmp_path / "r.json").read_text())
    assert capsys.readouterr().out == bench_table.render(kept)
    asked = "python -m export bench cpu --exports torchscript-17 --threads 1 --seconds 0.1 --no-flex --no-verify"
    assert kept["command"] == asked
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["roofline.svg", "speedup.svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--exports", "nothing"], "There is no export 'nothing'"),
        (["--only", "nothing"], "leaves no case"),
        (["--device", "cuda", "llama-gqa"], "--device cuda times a shape set"),
        (["--threads", "0"], "--threads takes 1 or more"),
        (["-o", "/no/such/folder/r.json"], "its folder does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(bool(gpus().found), reason="a GPU is here")
def test_a_gpu_that_is_not_here_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "gpu", "--device", "cuda"]) == 3
    assert "--device cuda needs an NVIDIA GPU" in capsys.readouterr().err


def test_inputs_on_a_gpu_rotate_through_more_than_its_cache() -> None:
    assert gpu_clock.sets_needed(2**30) == 4
    assert gpu_clock.sets_needed(2**20) * 2**20 >= 240 * 2**20
