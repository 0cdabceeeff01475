"""Recorded outputs are Polygraphy's own format: its library loads them and its command line prints them."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from export.errors import UsageError
from export.parity import Recording, check


def scaled(x):
    return {"y": x * 3, "n": x.argmax(-1)}


def off(x):
    return {"y": x * 3 + 0.5, "n": x.argmax(-1)}


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "outputs.json"
    recording = Recording()
    cases = [(torch.randn(2, 3, generator=torch.Generator().manual_seed(i)),) for i in range(2)]
    check(off, scaled, cases, "bf16", stage="mine", record=recording)
    recording.save(path)
    return path


def test_polygraphy_loads_and_compares_every_stage(recorded):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Polygraphy's own, on import
        from polygraphy.comparator import Comparator, CompareFunc, RunResults

        results = RunResults.load(str(recorded))
        assert [name for name, _ in results] == ["float64", "pytorch", "mine"]
        assert [len(iterations) for _, iterations in results] == [2, 2, 2]
        first = results["mine"][0]
        assert {name: str(first[name].dtype) for name in first} == {"y": "float32", "n": "int64"}
        compared = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=0.1))
        assert not bool(compared)
        loose = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=0.6))
        assert bool(loose)


def test_polygraphys_command_line_prints_it(recorded):
    tool = os.path.join(os.path.dirname(sys.executable), "polygraphy")
    out = subprocess.run([tool, "inspect", "data", str(recorded)], capture_output=True, text=True, check=True).stdout
    for word in ("float64", "pytorch", "mine", "(2 iterations)", "y [dtype=float32, shape=(2, 3)]"):
        assert word in out


def test_an_empty_recording_and_an_unwritable_place_are_refused(tmp_path):
    with pytest.raises(UsageError, match="Nothing was recorded"):
        Recording().save(tmp_path / "x.json")
    recording = Recording()
    check(scaled, scaled, [(torch.ones(2),)], "fp32", record=recording)
    with pytest.raises(UsageError, match=r"Could not write .*nowhere"):
        recording.save(tmp_path / "nowhere" / "x.json")
    assert list(tmp_path.iterdir()) == []
