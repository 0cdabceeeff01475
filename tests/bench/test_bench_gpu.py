"""A bench on a GPU with the CPU in its place: every contender that runs there, the truth, the targets, the table."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import providers
from export.bench import cases, clock, exports, gpu_cases, gpu_clock, gpu_run, gpu_targets, gpu_truth
from export.bench.ceilings import Ceilings
from export.bench.contender import OURS, TORCH, YARDSTICK
from export.bench.result import NOT_RUN, TIMED, WRONG, Case, Row
from export.bench.run import Asked, run
from export.bench.shapes import GPU, SETS, Shape
from export.bench.spread import Timing
from export.errors import UsageError
from export.report import bench_table

TINY = (
    Shape("full", 2, 24, 2, 2, 16),
    Shape("causal", 1, 40, 4, 2, 16),
    Shape("lengths", 3, 32, 2, 2, 16),
    Shape("decode", 2, 1, 4, 2, 16, 48),
)
TOP = Ceilings(1e15, 4e12)
SHAPE = Shape("padded", 2, 16, 2, 2, 16)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The JSON of a run of the tiny shapes, timed by the CPU's clock."""
    asked = Asked("gpu", "python -m export bench gpu --device cuda", (), {}, 1, 1, 0, False, False, device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "ROUND_SECONDS", 1e-4)
        patch.setattr(gpu_run, "DEVICE", "cpu")
        patch.setattr(gpu_run, "require", lambda: "a CPU in a GPU's place")
        patch.setattr(gpu_run, "_ceilings", lambda: TOP)
        patch.setattr(gpu_clock, "sets_needed", lambda size: 2)
        patch.setattr(gpu_clock, "interleaved", lambda calls: clock.interleaved(calls, 0.01))
        return dict(json.loads(json.dumps(gpu_run.run(asked, TINY).as_json(), allow_nan=False)))


def rows(document: Mapping[str, Any], family: str) -> dict[str, dict[str, Any]]:
    (case,) = (c for c in document["cases"] if c["name"].startswith(family))
    return {row["name"]: row for row in case["rows"]}


def test_everybody_who_runs_is_right(document: dict[str, Any]) -> None:
    for shape in TINY:
        found = rows(document, shape.family)
        assert not [n for n, row in found.items() if row["status"] == WRONG]
        timed = {n for n, row in found.items() if row["status"] == TIMED}
        kernels = {gpu_cases.INSIDE, gpu_cases.BEFORE} if shape.family in ("full", "causal") else {gpu_cases.KERNEL}
        assert {*kernels, "torch eager, decomposed", "torch SDPA MATH"} <= timed
        for name in timed - {gpu_cases.UNPADDED}:
            assert 0 <= found[name]["budget_used"] <= 1
        assert found["torch SDPA CUDNN"]["reason"] == "PyTorch has no CPU kernel for its backend CUDNN_ATTENTION."
        assert (gpu_cases.SEPARATE.format("FLASH") in found) == (shape.family != "lengths")
    assert rows(document, "lengths")[gpu_cases.UNPADDED]["kind"] == YARDSTICK


def test_the_targets_stand_in_the_json_and_the_table(document: dict[str, Any]) -> None:
    found = {(t["case"].split()[0] if t["case"] else "", t["status"]) for t in document["targets"]}
    assert found <= {(f, s) for f in ("full", "causal", "lengths") for s in ("met", "lost")} | {("", NOT_RUN)}
    assert {case for case, _ in found} == {"full", "causal", "lengths", ""}
    text = bench_table.render(document)
    assert "time of padded keys in proportion to useful FLOPs" in text and text.endswith("PASSED\n")


def test_a_wrong_answer_is_seen_wherever_it_is_looked_at() -> None:
    for shape in TINY:
        x = gpu_cases.draw(shape, 0, "cpu")
        right = gpu_cases._kernel(shape, x, False)().float().numpy()
        judged = gpu_truth.judged(shape, x, {"right": {"o": right}, "swapped": {"o": right[:, ::-1]}}, "bf16")
        status = {row.stage: row.status for row in judged.rows}
        assert status["right"] == "ok" and status["swapped"] == "fail", shape.family


def test_the_shapes_are_those_to_report() -> None:
    assert SETS["gpu"] == GPU and len({shape.name for shape in GPU}) == len(GPU)
    square = {(s.family, s.size, s.heads, s.batch, s.queries) for s in GPU if s.heads == s.kv_heads}
    for size, heads in ((64, 16), (128, 32)):
        for b, s in ((16, 512), (4, 2048), (1, 8192)):
            assert {(f, size, heads, b, s) for f in ("full", "causal", "lengths")} <= square
    assert [(s.batch, s.keys) for s in GPU if s.family == "decode"] == [(1, 2048), (1, 65536), (8, 8192), (32, 32768)]
    assert all((s.heads, s.kv_heads, s.size) == (32, 8, 128) for s in GPU if s.family == "decode")
    transformer = [s for s in GPU if (s.batch, s.queries) == (4, 4096)]
    assert [(s.family, s.kept) for s in transformer] == [("full", 0.0), ("lengths", 0.25)]
    assert all(("D64" in s.name) != ("D128" in s.name) for s in GPU if s.heads != 12)
    assert (
        gpu_cases.draw(replace(transformer[1], queries=64, heads=1, kv_heads=1), 0, "cpu").lengths.tolist() == [16] * 4
    )


def test_lengths_are_uniform_and_pairs_counted() -> None:
    x = gpu_cases.draw(Shape("lengths", 64, 40, 1, 1, 16), 0, "cpu")
    assert int(x.lengths.min()) >= 10 and int(x.lengths.max()) <= 40 and len(set(x.lengths.tolist())) > 10
    assert gpu_cases.kept_pairs(Shape("lengths", 64, 40, 1, 1, 16), x) == 40 * int(x.lengths.sum())
    assert torch.equal(x.q, gpu_cases.draw(Shape("lengths", 64, 40, 1, 1, 16), 0, "cpu").q)


def row(name: str, ms: float, kind: str = TORCH, status: str = TIMED, spread: float = 0.01) -> Row:
    return Row(name, kind, status=status, timing=None if status == NOT_RUN else Timing(30, 1, ms, ms, ms, spread, None))


def verdicts(shape: Shape, *found: Row, flops: int = 0) -> list[tuple[str, float | None]]:
    counted = flops or shape.flops()
    case = Case(shape.name, {}, "bf16", "", "tokens", counted, shape.bytes(2), "", None, found)
    *made, ort = gpu_targets.targets(((shape, case),), TOP)
    assert ort.status == NOT_RUN
    return [(t.status, None if t.value is None else round(t.value, 3)) for t in made]


def test_what_is_met_and_what_is_lost() -> None:
    short, long = Shape("causal", 1, 512, 32, 32, 128), Shape("full", 1, 2048, 32, 32, 128)
    inside, before = gpu_cases.INSIDE, gpu_cases.BEFORE
    assert verdicts(short, row(inside, 1.0, OURS), row("torch SDPA FLASH", 1.2)) == [("met", 1.2)]
    assert verdicts(short, row(inside, 1.0, OURS), row("torch SDPA FLASH", 1.01)) == [("lost", 1.01)]  # equal
    both = (row("torch SDPA FLASH", 1.2), row(gpu_cases.SEPARATE.format("CUDNN"), 0.9))
    assert verdicts(short, row(inside, 1.0, OURS), row(before, 0.1, OURS), *both) == [("lost", 0.9)]
    assert verdicts(short, row(inside, 1, OURS, WRONG), row("torch SDPA FLASH", 1.2)) == [(NOT_RUN, None)]
    assert verdicts(long, row(before, 1.0, OURS), row("torch SDPA CUDNN", 0.75)) == [("met", 0.75)]
    assert verdicts(long, row(before, 1.0, OURS), row("torch SDPA CUDNN", 0.74)) == [("lost", 0.74)]
    assert verdicts(long, row(before, 1.0, OURS), row("torch SDPA CUDNN", 1, status=NOT_RUN)) == [(NOT_RUN, None)]
    assert verdicts(replace(long, size=64), row(before, 1.0, OURS)) == []


def test_padding_costs_what_is_useful() -> None:
    shape = Shape("lengths", 4, 2048, 16, 16, 64)
    half = shape.flops() // 2
    whole = row(gpu_cases.UNPADDED, 2.0, YARDSTICK)
    assert verdicts(shape, row(gpu_cases.KERNEL, 1.1, OURS), whole, flops=half) == [("met", 1.1)]
    assert verdicts(shape, row(gpu_cases.KERNEL, 1.2, OURS), whole, flops=half) == [("lost", 1.2)]
    assert verdicts(shape, row(gpu_cases.KERNEL, 1.2, OURS), flops=half) == [(NOT_RUN, None)]


def test_decode_is_held_against_the_copy() -> None:
    shape = Shape("decode", 1, 1, 32, 8, 128, 65536)
    floor = 1000 * shape.bytes(2) / TOP.bytes_per_second
    assert verdicts(shape, row(gpu_cases.KERNEL, floor / 0.81, OURS)) == [("met", 0.81)]
    assert verdicts(shape, row(gpu_cases.KERNEL, floor / 0.79, OURS)) == [("lost", 0.79)]
    assert verdicts(replace(shape, keys=8192), row(gpu_cases.KERNEL, 1, OURS)) == []


def test_a_file_is_timed_on_the_provider_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exports.export(cases.module(SHAPE), cases.draw(SHAPE, 0), "torchscript-17", tmp_path / "model.onnx")
    asked = Asked(
        str(path), "python -m export bench model.onnx --device cuda", (), {"batch": 2, "length": 16}, 1, 0.05, 0, False,
        False, device="cuda",
    )  # fmt: skip
    monkeypatch.setattr(gpu_run, "require", lambda: "a CPU in a GPU's place")
    monkeypatch.setattr(gpu_run, "_ceilings", lambda: TOP)
    monkeypatch.setitem(providers.PROVIDERS, "cuda", providers.PROVIDERS["cpu"])
    monkeypatch.setattr(clock, "ROUND_SECONDS", 1e-4)
    document = json.loads(json.dumps(run(asked).as_json(), allow_nan=False))
    rows = {row["name"]: row for row in document["cases"][0]["rows"]}
    assert rows["as exported"]["status"] == rows["attnproof"]["status"] == TIMED
    assert 0 <= rows["attnproof"]["budget_used"] <= 1 and rows["attnproof"]["speedup"]["value"] > 0
    assert rows["TensorRT, native attention"]["status"] == NOT_RUN
    assert document["device"] == "cuda" and "CUDA provider" in document["pinning"]


def test_neither_a_set_nor_a_file_is_refused() -> None:
    asked = Asked("mha-rope", "", (), {}, 1, 1, 0, False, False, device="cuda")
    with pytest.raises(UsageError, match=r"build it, and name the model\.onnx"):
        run(asked)
