"""The harness on hand-built graphs: right ones pass, every mutant fails, and nothing that did not run passes."""

import dataclasses

import mutants
import numpy as np
import parity_blocks as blocks
import pytest
import torch
from parity_blocks import BY_NAME, runner, stages, statuses
from torch.nn import functional as F

from export.parity import ParityCase, check
from export.parity.result import table


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("spec", blocks.SPECS, ids=lambda s: s.name)
def test_right_graphs_pass_and_every_mutant_fails(spec, dtype):
    module = blocks.block(spec)
    policy = "zero" if spec.mask != "none" and not np.isfinite(spec.fill) else "keep"
    for three_d in (False, True):
        right = blocks.graph(module, dtype, three_d=three_d)
        wrong = mutants.mutants(right)
        assert len(wrong) >= 3
        candidates = {"fused": runner(right)} | {name: runner(model) for name, model in wrong.items()}
        report = stages(module, candidates, blocks.cases(spec), dtype, masked_rows=policy)
        assert statuses(report, "pytorch") == {"ok"}, table(report.rows)
        assert statuses(report, "fused") == {"ok"}, table(report.failures)
        passed = [name for name in wrong if "fail" not in statuses(report, name)]
        assert not passed, f"undetected: {passed}"


def test_every_mutant_is_made_of_some_block():
    made = set()
    for spec in blocks.SPECS:
        made |= set(mutants.mutants(blocks.graph(blocks.block(spec), "fp32")))
    assert made == set(mutants.MUTANTS)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_no_false_alarm_over_many_seeds(dtype):
    worst = 0.0
    for seed in range(3):
        for spec in blocks.SPECS:
            module = blocks.block(spec, seed)
            candidates = {}
            if dtype != "bf16":
                candidates["fused"] = runner(blocks.graph(module, dtype))
            report = stages(module, candidates, blocks.cases(spec, seed), dtype)
            failures = [r for r in report.failures if r.case != "fully-masked-row"]
            assert not failures, table(failures)
            worst = max(worst, *(r.ratio for r in report.rows if r.status == "ok"))
    assert 0.2 < worst <= 0.8, "the budget is far too wide, or nearly too narrow"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_nan_of_a_row_without_keys_may_become_zero_weights_after_fusing_only(dtype):
    spec = BY_NAME["bool-mask"]
    module = blocks.block(spec)
    graph = runner(blocks.graph(module, dtype))
    cases = [c for c in blocks.cases(spec) if c.name == "fully-masked-row"]
    kept = stages(module, {"exported": graph, "fused": graph}, cases, dtype)
    rows = {row.stage: row for row in kept.rows}
    assert rows["exported"].status == "fail"
    assert "NaN and Inf of output are in other places" in rows["exported"].reason
    assert "see no key" in rows["exported"].reason
    assert rows["fused"].status == "ok"
    assert "computed with zero weights" in rows["fused"].reason
    zeroed = stages(module, {"fused": graph}, cases, dtype, masked_rows="zero")
    assert statuses(zeroed, "fused") == {"ok"}
    own = stages(module, {"fused": module}, cases, dtype, masked_rows="zero")
    assert statuses(own, "fused") == {"fail"}, "NaN is not the declared zero"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_mean_of_v_is_kept_and_not_zero(dtype):
    spec = BY_NAME["finite-fill"]
    module = blocks.block(spec)
    cases = [c for c in blocks.cases(spec) if c.name == "fully-masked-row"]
    zeroing = blocks.graph(blocks.block(dataclasses.replace(spec, fill=float("-inf"))), dtype)
    candidates = {"right": runner(blocks.graph(module, dtype)), "zeroing": runner(zeroing)}
    kept = stages(module, candidates, cases, dtype)
    assert (statuses(kept, "right"), statuses(kept, "zeroing")) == ({"ok"}, {"fail"})
    zero = stages(module, candidates, cases, dtype, masked_rows="zero")
    assert (statuses(zero, "right"), statuses(zero, "zeroing")) == ({"fail"}, {"ok"})


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_an_added_fill_swallows_the_scores_and_zero_is_still_wrong(dtype):
    """Float64 keeps a score beside -1e9 and the dtype does not: both answers are right there, 0 is not."""

    def attend(q, k, v, mask):
        fill = {torch.float64: -1e9, torch.float32: -1e9}.get(q.dtype, -3e4)
        scores = q @ k.mT * 0.25 + mask.to(q.dtype) * fill
        return torch.softmax(scores, dim=-1) @ v

    def zeroing(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask == 0)

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 16, generator=generator) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.int64)
    mask[1, :, 3] = 1
    case = ParityCase("row", {"q": q, "k": k, "v": v, "mask": mask})
    assert check(attend, attend, [case], dtype).passed
    report = check(zeroing, attend, [case], dtype)
    assert not report.passed
    assert "All of them are in rows that see no key" in report.rows[0].reason
    assert check(zeroing, attend, [case], dtype, masked_rows="zero").passed


def test_rope_angles_rounded_to_half_precision_are_seen_at_long_positions():
    angles = torch.arange(600)[:, None] * 10000.0 ** (-torch.arange(8) / 8)

    def rotated(x, halved):
        positions = torch.arange(x.shape[-2])[:, None]
        frequencies = 10000.0 ** (-torch.arange(8) / 8)
        turned = (positions.half() * frequencies.half()).float() if halved else angles[: x.shape[-2]]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        a, b = wide.chunk(2, dim=-1)
        cos, sin = turned.cos(), turned.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    def attend(q, k, v, halved=False):
        return F.scaled_dot_product_attention(rotated(q, halved), rotated(k, halved), v)

    def halved(q, k, v):
        return attend(q, k, v, True)

    generator = torch.Generator().manual_seed(0)
    long = tuple(torch.randn(1, 2, 600, 16, generator=generator) * 1.5 for _ in range(3))
    assert check(attend, attend, [long], "fp16").passed
    report = check(halved, attend, [long], "fp16")
    assert not report.passed
    assert report.rows[0].worst is not None


def test_overflow_to_nan_in_half_precision_fails_pytorch_itself():
    def attend(q, k, v):
        return torch.softmax(q @ k.mT, dim=-1) @ v

    loud = tuple(torch.full((1, 1, 4, 64), 60.0) for _ in range(3))
    report = stages(attend, {"fused": attend}, [ParityCase("loud", dict(zip("qkv", loud, strict=True)))], "fp16")
    assert [row.status for row in report.rows] == ["fail", "fail"]
    assert "where float64 is finite; float16 ends at 65504" in report.rows[0].reason
    alone = check(attend, attend, [loud], "fp16")
    assert "PyTorch at this dtype fails here too" in alone.rows[0].reason
    assert stages(attend, {}, [ParityCase("loud", dict(zip("qkv", loud, strict=True)))], "bf16").passed


def test_an_error_of_pytorchs_own_kernel_widens_no_other_budget():
    """A function that is wrong only where nothing watches it stands for a fused kernel with a bug."""

    def watched(x):
        return torch.utils._python_dispatch._get_current_dispatch_mode() is not None

    def buggy(x):
        return x * 1.7 if watched(x) else x * 1.7 + 0.5

    case = ParityCase("kernel", {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))})
    report = stages(buggy, {"fused": lambda x: x * 1.7, "exported": lambda x: x * 1.7 + 0.5}, [case], "fp16")
    assert [row.status for row in report.rows] == ["fail", "ok", "fail"]


def test_tf32_is_a_mode_of_its_own():
    def attend(q, k, v):
        return torch.softmax(q @ k.mT * 0.25, dim=-1) @ v

    def tf32(q, k, v):
        def cut(x):
            return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

        return cut(torch.softmax(cut(q) @ cut(k).mT * 0.25, dim=-1)) @ cut(v)

    q, k, v = (torch.randn(2, 2, 9, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    assert check(tf32, attend, [(q, k, v)], "tf32").passed
    assert not check(tf32, attend, [(q, k, v)], "fp32").passed
    assert check(attend, attend, [(q, k, v)], "fp32").passed
