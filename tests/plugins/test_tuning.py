"""What measuring the kernel's variants chooses, writes and leaves alone; a fake clock says how fast each is."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tune_kernel  # noqa: E402
from kernel_machine import places, rotations  # noqa: E402
from tune_kernel import Task, candidates, crossing, ranked  # noqa: E402

from engines.gpus import gpus  # noqa: E402
from plugins import key_rotation  # noqa: E402
from plugins.kernels import splits, tuning  # noqa: E402
from plugins.kernels.variants import ATTENTION, DECODE, SHARED_MEMORY, Variant, variants  # noqa: E402

FAST = Variant(64, 128, 8, 3)
SPILLS = Variant(128, 128, 8, 3)


class Fake:
    """A GPU on which FAST is the fastest, three programs fill a multiprocessor, and keys turn better before from 1k."""

    sm, device = 90, "A GPU"

    def __init__(self) -> None:
        self.seconds = 0.0
        self.timed: list[str] = []

    def compile(self, asked: Any) -> dict[Any, str]:
        return {(task, variant): "8 bytes of registers spilled" if variant == SPILLS else "" for task, variant in asked}

    def time(self, place: Any, dtype: str, options: Any) -> dict[str, Any]:
        self.seconds += 10
        self.timed += options
        return {n: rounds((1.0 if v == FAST else 2.0) + abs(p - 3) / 10) for n, (v, p) in options.items()}

    def time_rotation(self, place: Any, dtype: str) -> dict[str, Any]:
        return {"inside": rounds(1.0), "before": rounds(2.0 if place.keys < 1024 else 0.5)}


def rounds(seconds: float, spread: float = 0.0) -> list[list[float]]:
    return [[seconds * (1 + spread * turn)] for turn in (-1, 1, 0, -1, 0, 1, -1, 1)]


def tuned(*tasks: Task, seconds: float = 1e9, machine: Fake | None = None) -> tuple[dict[str, Any], list[str]]:
    gpu = machine or Fake()
    note = {"device": "A GPU", "date": "2027-01-01", "versions": {"triton": "3.6.0"}}
    return tune_kernel.tuned(gpu, tasks, rotations(), lambda: gpu.seconds, seconds, tuning.document(), note)


def task(kernel: str, size: int = 64, dtype: str = "bf16") -> Task:
    return Task(kernel, dtype, size, places(kernel, size))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Returns the data as a measurement leaves it, and makes everybody read it."""
    found, _ = tuned(task(ATTENTION), task(DECODE))
    monkeypatch.setattr(tuning, "document", lambda: found)
    return found


def test_the_fastest_comes_first_on_its_gpu_alone(measured: dict[str, Any]) -> None:
    before = variants(64, "bf16")
    assert variants(64, "bf16", sm=90)[0] == FAST and set(before) < set(variants(64, "bf16", sm=90))
    assert before[0] != FAST and variants(64, "bf16", sm=80) == before
    assert variants(64, "fp16", sm=90) == variants(64, "fp16")
    (row,) = (r for r in measured["kernels"] if r["source"] == "measured" and r["kernel"] == ATTENTION)
    assert (row["device"], row["date"], row["versions"]) == ("A GPU", "2027-01-01", {"triton": "3.6.0"})
    assert len(row["variants"]) == tune_kernel.KEPT


def test_the_rules_follow_the_measurement(measured: dict[str, Any]) -> None:
    assert splits.rule(90).programs_per_sm == 3 and splits.rule(90).device == "A GPU"
    assert splits.rule(90).least_keys == splits.rule(80).least_keys
    assert splits.rule(80).programs_per_sm == 2
    assert key_rotation.crossover(90) == key_rotation.Crossover(512, "A GPU")
    assert key_rotation.crossover() == key_rotation.crossover(90)  # of a GPU that is not known


def test_the_file_says_what_is_estimated() -> None:
    kept = tuning.document()
    assert tuning.DATA.read_text() == tuning.text(kept)
    for kind, names in tuning.KEYS.items():
        assert len({tuple(str(r[n]) for n in names) for r in kept[kind]}) == len(kept[kind])
        for row in kept[kind]:
            assert row["source"] in ("estimated", "measured")
            measured = row["source"] == "measured"
            assert measured == (row["sm"] is not None) == all(row.get(n) for n in ("device", "date", "versions"))
    assert {(r["kernel"], r["dtype"], r["head_size"]) for r in kept["kernels"] if r["sm"] is None} == {
        (k, d, s) for k in (ATTENTION, DECODE) for d in ("fp16", "bf16", "fp32") for s in (16, 32, 64, 128, 256)
    }


def test_what_spills_is_not_timed_and_a_new_measurement_replaces_the_old() -> None:
    machine = Fake()
    assert SPILLS in candidates(task(ATTENTION), 90)
    found, lines = tuned(task(ATTENTION), machine=machine)
    assert "128x128 w8 s3" not in machine.timed and "64x128 w8 s3" in machine.timed
    assert any("64x128 w8 s3" in line and "1 left out" in line for line in lines)
    again = tuning.with_row(found, "kernels", found["kernels"][-1])
    assert len(again["kernels"]) == len(found["kernels"]) == len(tuning.document()["kernels"]) + 1
    assert json.loads(tuning.text(again)) == again


def test_what_the_time_does_not_reach_keeps_its_row() -> None:
    found, lines = tuned(task(ATTENTION), task(ATTENTION, 128), seconds=65)
    assert [r["head_size"] for r in found["kernels"] if r["source"] == "measured"] == [64]
    assert f"NOT RUN: {ATTENTION} bf16 D128: the time was up" in lines
    assert "NOT RUN: key_rotation: the time was up" in lines
    assert found["key_rotation"] == tuning.document()["key_rotation"]


def test_ranks_are_geometric_means_and_the_present_stays_where_they_are_equal() -> None:
    seen = {"one": {"a": rounds(1), "b": rounds(4), "c": rounds(3)}, "two": {"a": rounds(9), "b": rounds(2)}}
    assert ranked(seen, "a") == ["b", "a"]  # 1 * 9 against 4 * 2; c was not timed everywhere
    close = {"one": {"a": rounds(1.02, 0.03), "b": rounds(1.0)}}
    assert ranked(close, "a") == ["a", "b"]
    assert ranked({"one": {"a": rounds(1.02), "b": rounds(1.0)}}, "a") == ["b", "a"]


def test_keys_are_rotated_inside_up_to_the_first_loss() -> None:
    won, lost = {"inside": rounds(1), "before": rounds(2)}, {"inside": rounds(2), "before": rounds(1)}
    even = {"inside": rounds(1.01, 0.02), "before": rounds(1)}
    assert crossing({128: won, 256: even, 512: lost, 1024: won}) == 256
    assert crossing({128: lost}) == 0


def test_a_variant_is_read_as_it_was_written() -> None:
    tile = Variant(128, 64, 8, 3, peeled=True, specialized=True)
    assert tile.as_row() == [128, 64, 8, 3, "peeled", "specialized"] and Variant.of_row(tile.as_row()) == tile
    tried = candidates(task(ATTENTION, 128), 90)
    assert any(v.descriptors and v.peeled for v in tried) and not any(v.specialized for v in tried)
    assert any(v.specialized for v in candidates(task(ATTENTION, 128), 120))
    assert not any(v.descriptors for v in candidates(task(ATTENTION, 128), 89))


@pytest.mark.parametrize("sm", [80, 89, 90, 120])
def test_candidates_fit_the_shared_memory_and_begin_with_the_present(sm: int) -> None:
    for kernel, size in ((ATTENTION, 64), (ATTENTION, 128), (DECODE, 128)):
        tried = candidates(task(kernel, size), sm)
        assert tried[: tune_kernel.KEPT] == variants(size, "bf16", kernel, sm)[: tune_kernel.KEPT]
        assert len(tried) == len(set(tried)) > 10
        assert all(4 * v.block_n * size * (v.stages - 1) < SHARED_MEMORY[sm] * 1024 for v in tried[tune_kernel.KEPT :])


@pytest.mark.skipif(bool(gpus().found), reason="a GPU is here")
def test_without_a_gpu_nothing_is_run_or_written(capsys: pytest.CaptureFixture[str]) -> None:
    before = tuning.DATA.read_bytes()
    assert tune_kernel.main([]) == 3
    assert capsys.readouterr().out.startswith("NOT RUN: it needs an NVIDIA GPU: ")
    assert tuning.DATA.read_bytes() == before


def test_the_command_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = copy.deepcopy(tuning.document())
    assert tune_kernel.main(["--sizes", "64", "--dtypes", "bf16", "-o", str(tmp_path / "v.json")], Fake()) == 0
    written = json.loads((tmp_path / "v.json").read_text())
    row = tuning._row(written, "kernels", 90, {"kernel": ATTENTION, "dtype": "bf16", "head_size": 64})
    assert row["command"].startswith("python benchmarks/tune_kernel.py --sizes 64")
    assert row["variants"][0] == [64, 128, 8, 3]
    assert set(row["versions"]) == {"torch", "triton"} and tuning.document() == before
    assert "wrote" in capsys.readouterr().out


ON_CPU = """
import sys
sys.path[:0] = ["benchmarks"]
import kernel_machine as km
from export.bench.clock import Times
from tune_kernel import Task, ranked, crossing
from plugins.kernels.variants import ATTENTION, DECODE, Variant
km.Gpu.__init__ = lambda self: None
def clock(calls):
    done = {name: call() for name, call in calls.items()}
    assert len({tuple(out.shape) for out in done.values()}) == 1
    one, *others = done.values()
    assert all((one - other).abs().max() < 1e-2 for other in others)  # they computed the same
    return {name: Times([[1.0]]) for name in calls}
gpu = km.Gpu()
gpu.where, gpu.sm, gpu.processors, gpu._clock = "cpu", 90, 4, clock
small = km.Place(1, 20, 20, 4, 2, 16, 1, 1)
cache = km.Place(1, 1, 1100, 4, 2, 16, 2, 0)
tile, other = Variant(16, 32, 4, 1), Variant(32, 16, 4, 1)
assert km.trouble(Task(ATTENTION, "fp16", 16, (small,)), tile, 0, "cpu") == ""
assert km.trouble(Task(DECODE, "fp16", 16, (cache,)), tile, 0, "cpu") == ""
assert ranked({"x": gpu.time(small, "fp16", {"a": (tile, 0), "b": (other, 0)})}, "a") == ["a", "b"]
assert gpu._splits(cache, 2) == 4 and gpu._splits(cache, 0) == 0
assert set(gpu.time(cache, "fp16", {"a": (tile, 2)})) == {"a"}
assert crossing({20: gpu.time_rotation(small, "fp32")}) == 20
print("measured")
"""


def test_its_own_code_runs_with_the_cpu_in_the_gpus_place() -> None:
    pytest.importorskip("triton", reason="NOT RUN: Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ON_CPU]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "measured\n", done.stderr
