"""Precision is what was asked, seen in real engines: no float32 island around an attention, or a failure."""

import json
from pathlib import Path

import pytest

from export import build, cli

FACTORY = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, shown=False):
        super().__init__()
        self.qkv, self.out, self.shown = nn.Linear(128, 384), nn.Linear(128, 128), shown

    def forward(self, x):
        b, s, e = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 4, 32).permute(2, 0, 3, 1, 4).unbind(0)
        angles = torch.arange(s).float()[:, None] / 10000 ** (torch.arange(0, 32, 2).float() / 32)
        angles = torch.cat((angles, angles), -1)

        def turned(t):
            t = t.float()
            return t * angles.cos() + torch.cat((-t[..., 16:], t[..., :16]), -1) * angles.sin()

        p = (turned(q) @ turned(k).transpose(-1, -2) * 32**-0.5).softmax(-1)
        y = self.out((p @ v.float()).to(x.dtype).transpose(1, 2).reshape(b, s, e))
        return (y, p) if self.shown else y


def island():
    return Attention(), (torch.randn(2, 9, 128),)


def shown():
    return Attention(shown=True), (torch.randn(2, 9, 128),)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="NOT RUN: tensorrt-rtx is not installed")
    (tmp_path / "net.py").write_text(FACTORY)
    return tmp_path / "net.py"


def built(source: Path, factory: str, dtype: str):
    shapes = {"batch": (1, 2, 4), "length": (1, 64, 128)}
    words = {"dtype": dtype, "sm": (89,), "target": "tensorrt-rtx", "shapes": shapes}
    return build(f"{source}:{factory}", out=str(source.parent / "out"), **words)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rotated_in_float32_the_attention_still_runs_in_one_kernel_of_the_precision_asked_for(
    source: Path, dtype: str
) -> None:
    report = built(source, "island", dtype)
    assert report.passed
    (row,), (engine,) = report.attentions, report.engines
    assert row.rope == "qk"
    assert report.kernel(row, 89).fused is True
    assert report.kernel(row, 89).achieved == dtype
    assert engine.achieved.products == {dtype: 3}
    assert [step.action for step in report.steps].count("cast back") == 1
    written = json.loads((report.folder / "report.json").read_text())
    assert written["attentions"][0]["achieved"] == {"sm89": dtype}
    assert written["engines"][0]["achieved"]["precision"] == dtype


def test_a_float32_island_that_stays_fails_the_build_and_is_named(source: Path, capsys) -> None:
    report = built(source, "shown", "fp16")
    assert not report.passed
    (failure,) = report.failures
    assert failure.startswith("model.89.engine: attention node_softmax/Attention computes in fp32, and fp16 was asked")
    assert "(Cast) [" in failure
    assert "net.py:" in failure
    assert failure.endswith("] makes it so; cast the queries and keys back to fp16 before their product.")
    assert report.engines[0].achieved.products == {"fp16": 2, "fp32": 2}
    assert cli.main(["check", str(report.folder)]) == 1, "a later check does not forget it"
    assert f"failed: {failure}" in capsys.readouterr().out
