"""Where fp16 scores stay in float32, an added finfo.min does not swallow them: right there, said, and nowhere else."""

import numpy as np
import onnx
import pytest
import torch
from parity_blocks import runner, stages
from torch import nn

from export.parity import ParityCase
from export.parity.compare import Expected, compare
from export.parity.precision import precision
from export.parity.unabsorbed import unabsorbed

FILL = torch.finfo(torch.float16).min


class Filled(nn.Module):
    def forward(self, q, k, v, hidden):
        scores = q @ k.mT + hidden.to(q.dtype) * torch.finfo(q.dtype).min
        return torch.softmax(scores, dim=-1) @ v


def graph(second: str = "hide") -> onnx.ModelProto:
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
    g (float16[2,5,8] q, float16[2,5,8] k, float16[2,5,8] v, int64[2,1,5] hidden) => (float16[2,5,8] y)
    <float[1] wide = {{{FILL}}}> {{
        fill = Cast<to=10>(wide)
        kt = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, kt)
        keyless = Cast<to=10>(hidden)
        hide = Mul(keyless, fill)
        none = Sub(hide, hide)
        m = Add(s, {second})
        p = Softmax<axis=-1>(m)
        y = MatMul(p, v)
    }}"""
    return onnx.parser.parse_model(text)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, 8, generator=generator) for _ in range(3))
    hidden = torch.zeros(2, 1, 5, dtype=torch.int64)
    hidden[0, :, 3:] = 1
    hidden[1] = 1
    return ParityCase("row", {"q": q, "k": k, "v": v, "hidden": hidden})


def test_a_row_without_keys_may_follow_its_scores_on_onnx_runtimes_cpu_only(case):
    graphs = runner(graph())

    class Elsewhere:
        def run(self, feeds):
            return graphs.run(feeds)

    report = stages(
        Filled(), {"exported": graphs, "fused": graph().SerializeToString(), "engine": Elsewhere()}, [case], "fp16"
    )
    rows = {row.stage: row for row in report.rows}
    assert rows["pytorch"].status == "ok"
    assert rows["exported"].status == rows["fused"].status == "ok", rows
    assert "follow their scores here" in rows["exported"].reason
    assert rows["exported"].ratio < 0.6
    assert rows["engine"].status == "fail"
    assert "All of them are in rows that see no key" in rows["engine"].reason
    zero = stages(Filled(), {"fused": graphs}, [case], "fp16", masked_rows="zero")
    assert not zero.passed


def test_rows_that_see_keys_are_judged_as_ever(case):
    """Without its mask a graph gives the same in rows that see no key, and something else in the others."""
    row = stages(Filled(), {"exported": runner(graph("none"))}, [case], "fp16").rows[1]
    assert row.status == "fail"
    assert row.worst[0] == 0


def test_the_answer_holds_for_all_such_rows_together():
    value, other = np.ones((4, 2)), np.full((4, 2), 2.0)
    dead = np.zeros((4, 2), dtype=bool)
    dead[2:] = True
    want = Expected("y", "float16", value, 1e-3, 1e-2, dead, np.where(dead, 3.0, 1.0), other, 1e-3)
    fp16 = precision("fp16")
    got = np.where(dead, 2.0, 1.0).astype(np.float16)
    verdict = compare(got, want, fp16)
    assert verdict.ok
    assert verdict.max_error == 0
    got[3, 0] = 1.0
    assert not compare(got, want, fp16).ok
    got[3, 0] = 2.5
    assert not compare(got, want, fp16).ok
    assert not compare(np.full((4, 2), 2.0, np.float16), want, fp16).ok


def test_constants_are_those_of_the_dtype_and_steps_are_not_rounded(case):
    half = {k: v.half() if v.is_floating_point() else v for k, v in case.inputs.items()}
    got = unabsorbed(Filled(), (), half)
    q, k, v = (half[name].double() for name in "qkv")
    want = torch.softmax(q @ k.mT + half["hidden"] * FILL, dim=-1) @ v
    assert got.dtype == torch.float64
    assert torch.allclose(got, want, rtol=1e-12, atol=0)
    moved = unabsorbed(Filled(), (), half, seed=0)
    assert 1e-5 < (moved - want).abs().max() < 2e-2

    def in_place(q, mask):
        scores = torch.zeros_like(q)
        scores.add_(q)
        scores[:, 1:] += mask
        return scores.flatten(1), {"cast": (scores.float() * 2).to(scores.dtype), "count": (q > 0).sum()}

    flat, more = unabsorbed(in_place, (half["q"], torch.tensor(FILL, dtype=torch.float16)), {})
    assert flat.view(2, 5, 8)[0, 1, 0] == q[0, 1, 0] + FILL
    assert flat.view(2, 5, 8)[0, 0, 0] == q[0, 0, 0]
    assert torch.equal(more["cast"][:, 0], 2 * q[:, 0])
    assert more["cast"][0, 1, 0] == -torch.inf, "a cast ends at the dtype's range"
    assert more["count"].dtype == torch.int64
