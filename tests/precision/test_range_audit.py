"""The range audit: what leaves fp16's range is named, and fails a build exactly if storing it changes an output."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export import build, cli, judge
from export.lower import lower
from export.parity.result import FAIL, ParityReport, ParityRow
from export.precision import range_audit
from export.precision.range_audit import BREAKS, HARMLESS, IN_KERNEL, RangeAudit


def graph(body: str, inputs: str = "float16[b, 4] x", outputs: str = "float16[b, 4] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_onnx_text(text)


def number(name: str, value: float) -> str:
    return f"{name}32 = Constant<value = float {{{value}}}>() {name} = Cast<to = 10>({name}32)"


def audited(model: ir.Model, feeds: dict[str, np.ndarray], apart: bool = False) -> RangeAudit:
    return range_audit.audit(model, "fp16", [("typical", feeds)], lower(model, "ort").model, apart)


X = {"x": np.array([[1, 2, 3, 4]], np.float16)}
LARGE = f"{number('c', 30000.0)} [loud] big = Mul(x, c)"


def test_what_becomes_infinity_and_reaches_an_output_fails() -> None:
    found = audited(graph(f"{LARGE} [back] y = Div(big, c)"), X)
    (finding,) = found.findings
    assert (finding.tensor, finding.value, finding.case, finding.effect) == ("big", 120000.0, "typical", BREAKS)
    assert (found.largest, found.largest_tensor) == (120000.0, "big")
    (sentence,) = found.failures()
    assert sentence == (
        "range: Tensor 'big', made by 'loud' (Mul), reaches 1.2e+05 in case typical, beyond fp16's largest number "
        "65504: stored as infinity, it changes the outputs. Build in bf16 (--dtype bf16), keep that step in float32, "
        "or scale its operands."
    )
    assert not found.warnings()


def test_a_sum_of_squares_that_gives_a_finite_wrong_answer_fails_too() -> None:
    found = audited(graph(f"{LARGE} [inverse] y = Div(c, big)"), X)
    assert found.failures(), "1 / infinity is 0, which is finite and wrong"


def test_what_saturates_anyway_is_a_warning() -> None:
    found = audited(graph(f"{LARGE} [bounded] y = Tanh(big)"), X)
    assert [f.effect for f in found.findings] == [HARMLESS]
    assert not found.failures()
    assert "the outputs do not change on the parity cases" in found.warnings()[0]


def test_a_mask_that_becomes_minus_infinity_is_no_word_worth() -> None:
    body = f"{number('c', -65504.0)} m = Mul(x, c) [masked] s = Sub(m, x) [softmax] y = Softmax<axis = -1>(s)"
    found = audited(graph(body), {"x": np.array([[0, 1, 0, 2]], np.float16)})
    assert [f.tensor for f in found.findings] == ["m", "s"]
    assert all(f.mask and f.effect == HARMLESS for f in found.findings)
    assert not found.failures()
    assert not found.warnings()


def test_rounding_up_to_the_largest_number_is_no_overflow() -> None:
    found = audited(graph(f"{number('c', 16376.0)} y = Mul(x, c)"), X)
    assert not found.findings
    assert found.largest == 65504


def test_digits_lost_in_small_numbers_are_a_warning_where_they_matter() -> None:
    small = f"{number('c', 1e-3)} [small] low = Mul(x, c) [smaller] lower = Mul(low, c)"
    feeds = {"x": np.array([[0.011, 0.023, 0.031, 0.017]], np.float16)}
    found = audited(graph(f"{small} up = Div(lower, c) y = Div(up, c)"), feeds)
    assert {f.kind for f in found.findings} == {"underflow"}
    assert not found.failures()
    assert any("'lower'" in sentence and "it changes the outputs" in sentence for sentence in found.warnings())
    harmless = audited(graph(f"{small} y = Add(x, lower)"), feeds)
    assert harmless.findings
    assert not harmless.warnings()


ATTENTION = (
    "[attn] y = Attention<scale: float = 1.0>(q, k, v)",
    "float16[b, 2, s, 8] q, float16[b, 2, s, 8] k, float16[b, 2, s, 8] v",
    "float16[b, 2, s, 8] y",
)


@pytest.mark.parametrize(("apart", "effect"), [(False, IN_KERNEL), (True, BREAKS)])
def test_scores_inside_an_attention_are_seen_and_overflow_only_where_they_are_stored(apart: bool, effect: str) -> None:
    rng = np.random.default_rng(0)
    feeds = {n: (rng.standard_normal((1, 2, 3, 8)) * (300 if n != "v" else 1)).astype("f2") for n in "qkv"}
    found = audited(graph(*ATTENTION), feeds, apart)
    (finding,) = found.findings
    scores = feeds["q"].astype("f8") @ feeds["k"].astype("f8").transpose(0, 1, 3, 2)
    assert finding.tensor == "attn/scores"
    assert abs(finding.value) == pytest.approx(np.abs(scores).max(), rel=1e-6)
    assert finding.effect == effect
    assert bool(found.failures()) is apart
    assert any("the fused attention holds it in float32" in w for w in found.warnings()) is not apart


def test_a_product_that_fusing_took_in_is_held_by_the_kernel() -> None:
    body = (
        f"kt = Transpose<perm = [0, 1, 3, 2]>(k) [product] s = MatMul(q, kt) {number('c', 0.01)} [scaled] t = Mul(s, c)"
    )
    body += " p = Softmax<axis = -1>(t) y = MatMul(p, v)"
    model = graph(body, *ATTENTION[1:])
    feeds = {n: np.full((1, 2, 3, 8), 150 if n != "v" else 1, "f2") for n in "qkv"}
    fused = range_audit.audit(model, "fp16", [("typical", feeds)], graph(*ATTENTION), False)
    assert [(f.tensor, f.effect) for f in fused.findings] == [("s", IN_KERNEL)]
    assert audited(model, feeds).failures(), "unfused, the product is stored before it is scaled"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_other_precisions_have_the_range(dtype: str) -> None:
    model = graph("y = Identity(x)")
    found = range_audit.audit(model, dtype, [], model, False)
    assert found.status == "not needed"
    assert RangeAudit.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_failed_stage_names_the_tensor_as_its_cause() -> None:
    found = audited(graph(f"{LARGE} y = Div(big, c)"), X)
    rows = (ParityRow("typical", "fused", FAIL, reason="4 elements are infinite."),)
    (failure, _) = judge.failures(ParityReport(rows, "fp16"), None, (), found)
    assert failure.startswith("fused, case typical: 4 elements are infinite. The cause: Tensor 'big', made by 'loud'")
    other = (ParityRow("odd", "fused", FAIL, reason="4 elements are infinite."),)
    assert "cause" not in judge.failures(ParityReport(other, "fp16"), None, (), found)[0]


FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        y = self.first(x) * 400
        return self.last(y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6))


def make():
    return Net(), (torch.randn(2, 9, 16),)
"""


def test_a_norm_that_overflows_fails_the_build_with_its_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    shapes = {"batch": (1, 2, 3), "length": (1, 6, 9)}
    where = {"out": str(tmp_path / "o"), "target": "ort", "shapes": shapes}
    report = build(f"{tmp_path / 'net.py'}:make", dtype="fp16", **where)
    failure = report.failures[-1]
    assert failure.startswith("range: Tensor '")
    assert "(Mul) [" in failure
    assert "net.py:13 in forward: return self.last(" in failure
    written = json.loads((tmp_path / "o" / "report.json").read_text())["range_audit"]
    assert written["status"] == "ran"
    assert any(found["effect"] == BREAKS for found in written["findings"])
    assert cli.main(["check", str(tmp_path / "o")]) == 1
    assert f"failed: {failure}" in capsys.readouterr().out
