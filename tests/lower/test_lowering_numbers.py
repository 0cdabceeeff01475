"""Every lowering computes what ONNX says: against float64 from the operator's text, on rows with and without keys."""

from collections.abc import Callable

import lowering_graphs as g
import lowering_oracle
import numpy as np
import onnx_ir as ir
import pytest

from export.lower import TARGETS, for_ort_check, lower
from export.lower.call import TRT_MARK

QKV = "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v"
QKV3 = "float[B,S,64] q, float[B,T,32] k, float[B,T,32] v"
HEADS = "q_num_heads: int = 4, kv_num_heads: int = 2"
PAST = ", float[B,4,P,16] pk, float[B,4,P,16] pv"
PRESENT = ", float[B,4,PT,16] ok, float[B,4,PT,16] ov"
OUT = "float[B,4,S,16] y"


def past(attributes: str, mask: str = "", keys: str = "T", queries: str = "S", present: bool = True) -> ir.Model:
    inputs = f"float[B,4,{queries},16] q, float[B,4,{keys},16] k, float[B,4,{keys},16] v{PAST}"
    total = {"T": "PT", "S": "PS", "1": "4"}[keys]
    outputs = f"float[B,4,{queries},16] y" + PRESENT.replace("PT", total)
    if mask:
        inputs += f", {mask} m"
    if not present:
        outputs = outputs.partition(", ")[0]
    made = "y, ok, ov" if present else "y"
    body = f"[attn] {made} = Attention <scale: float = 0.25{attributes}> (q, k, v, {'m' if mask else ''}, pk, pv)"
    return g.model(inputs, body, outputs)


def lengths(attributes: str = "", mask: str = "") -> ir.Model:
    inputs = f"{QKV}, int64[B] n" + (f", {mask} m" if mask else "")
    body = f"[attn] y = Attention <scale: float = 0.25{attributes}> (q, k, v, {'m' if mask else ''}, , , n)"
    return g.model(inputs, body, OUT)


def scores(mode: int, mask: str, attributes: str = "") -> ir.Model:
    body = (
        f"[attn] y, , , w = Attention <scale: float = 0.25, qk_matmul_output_mode: int = {mode}{attributes}> "
        f"(q, k, v{', m' if mask else ''})"
    )
    return g.model(QKV + (f", {mask} m" if mask else ""), body, f"{OUT}, float[B,4,S,T] w")


def three_axes(mask: str = "", attributes: str = "", value: int = 32) -> ir.Model:
    inputs = QKV3.replace("float[B,T,32] v", f"float[B,T,{value}] v") + (f", {mask} m" if mask else "")
    extra = f", {attributes}" if attributes else ""
    body = f"[attn] y = Attention <scale: float = 0.25, {HEADS}{extra}> (q, k, v{', m' if mask else ''})"
    return g.model(inputs, body, f"float[B,S,{2 * value}] y")


MASKS = ("[B,1,S,T]", "[B,1,1,T]", "[S,T]", "[1,T]", "[T]", "[4,S,T]", "[B,4,S,T]", "[1,4,1,T]")
CAUSAL, WINDOW = "is_causal: int = 1", "left_window_size: int = 2, right_window_size: int = 1"
CASES: dict[str, Callable[[], ir.Model]] = {
    "plain": lambda: g.attention(),
    "grouped": lambda: g.attention(kv_heads=2),
    **{f"bool{s}": (lambda s=s: g.attention(f"bool{s}")) for s in MASKS},
    **{f"float{s}": (lambda s=s: g.attention(f"float{s}")) for s in MASKS},
    "int-mask": lambda: g.attention("int64[B,1,S,T]"),
    "causal": lambda: g.attention("", CAUSAL),
    "causal-bool": lambda: g.attention("bool[B,1,1,T]", CAUSAL),
    "causal-float": lambda: g.attention("float[B,1,S,T]", CAUSAL),
    "causal-bool-grouped": lambda: g.attention("bool[B,1,S,T]", CAUSAL, kv_heads=1),
    "softcap": lambda: g.attention("", "softcap: float = 1.5"),
    "softcap-causal-bool-grouped": lambda: g.attention("bool[B,1,S,T]", f"softcap: float = 1.5, {CAUSAL}", kv_heads=2),
    "softcap-float": lambda: g.attention("float[B,4,S,T]", "softcap: float = 1.5"),
    "precision": lambda: g.attention("", "softmax_precision: int = 1"),
    "small-head": lambda: g.attention("bool[B,1,1,T]", size=8),
    "value-smaller": lambda: g.attention("bool[B,1,1,T]", value_size=8),
    "value-larger": lambda: g.attention(value_size=24, kv_heads=2),
    "window": lambda: g.attention("", WINDOW),
    "window-causal": lambda: g.attention("", f"{WINDOW}, {CAUSAL}", keys="S"),
    "window-float": lambda: g.attention("float[B,1,S,T]", WINDOW),
    "lengths": lambda: lengths(),
    "lengths-causal": lambda: lengths(f", {CAUSAL}"),
    "lengths-bool": lambda: lengths(mask="bool[S,T]"),
    "lengths-window": lambda: lengths(f", {WINDOW}"),
    "one-head-bool": lambda: g.attention("bool[B,1,1,T]", heads=1, kv_heads=1),
    "one-head-causal-float": lambda: g.attention("float[1,1,S,T]", CAUSAL, heads=1, kv_heads=1),
    "one-query": lambda: g.attention("bool[B,1,1,T]", size=20, queries="1"),
    "past": lambda: past(""),
    "past-without-present": lambda: past("", "bool[B,1,1,PT]", present=False),
    "past-causal": lambda: past(f", {CAUSAL}", keys="S"),
    "past-causal-one-query": lambda: past(f", {CAUSAL}", keys="1", queries="1"),
    "past-causal-bool": lambda: past(f", {CAUSAL}", "bool[B,1,1,PT]"),
    "past-window": lambda: past(f", {WINDOW}", keys="S"),
    **{f"scores-{m}-bool": (lambda m=m: scores(m, "bool[B,1,S,T]", ", softcap: float = 1.5")) for m in range(4)},
    **{f"scores-{m}-causal-float": (lambda m=m: scores(m, "float[B,1,S,T]", f", {CAUSAL}")) for m in range(4)},
    **{f"scores-{m}-float": (lambda m=m: scores(m, "float[S,T]")) for m in range(4)},
    "scores-2-plain": lambda: scores(2, ""),
    "three-axes": lambda: three_axes(),
    "three-axes-bool": lambda: three_axes("bool[B,1,1,T]"),
    "three-axes-causal-heads": lambda: three_axes("bool[B,4,S,T]", CAUSAL),
    "three-axes-value": lambda: three_axes(value=16),
    "three-axes-softcap": lambda: three_axes("float[B,1,S,T]", "softcap: float = 1.5"),
}


def expected(graph: ir.Model, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    node = g.node(graph)
    arguments = [given.get(v.name or "") if v is not None else None for v in node.inputs]
    results = lowering_oracle.attention(*arguments, **{n: a.value for n, a in node.attributes.items()})
    by_name = {v.name: r for v, r in zip(node.outputs, results, strict=False)}
    return [by_name[v.name] for v in graph.graph.outputs]


def compare(got: list[np.ndarray], want: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(np.isneginf(a), np.isneginf(b))
        finite = np.isfinite(b)
        # Numbers near a type's lowest are masks' fills in the shown scores: there the relative error counts.
        np.testing.assert_allclose(a[finite], b[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "onnx"])
@pytest.mark.parametrize("case", CASES)
def test_lowered_equals_the_operator(case: str, target: str) -> None:
    graph = CASES[case]()
    before = ir.to_proto(graph).SerializeToString()
    lowered = lower(graph, target).model
    assert ir.to_proto(graph).SerializeToString() == before, "the input was changed"
    runnable = lowered if target == "ort" else for_ort_check(lowered)
    g.check(runnable)
    assert not any(TRT_MARK in n.attributes for n in runnable.graph)
    given = g.feeds(graph)
    compare(g.run_ort(runnable, given), expected(graph, given), 2e-6)


@pytest.mark.parametrize(
    "case",
    [
        "bool[B,1,S,T]",
        "causal-bool-grouped",
        "past-causal-bool",
        "three-axes-bool",
        "one-head-bool",
        "one-query",
        "small-head",
        "value-smaller",
    ],
)
def test_half_precision_keeps_its_masks(case: str) -> None:
    text = ir.to_onnx_text(CASES[case]()).replace("float[", "float16[")
    graph = ir.from_onnx_text(text)
    given = g.feeds(graph)
    lowered = lower(graph, "tensorrt-rtx").model
    compare([x.astype(np.float64) for x in g.run_ort(for_ort_check(lowered), given)], expected(graph, given), 4e-3)


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx"])
def test_a_wider_mask_than_q(target: str) -> None:
    """-1e9 is no number of float16, and must not become -inf: 0 rows would appear where there were none."""
    graph = g.attention("float[B,1,S,T]", dtype="float16")
    given = g.feeds(graph)
    mask = np.where(np.random.default_rng(1).random(given["m"].shape) > 0.5, np.float32(-1e9), np.float32(0))
    mask[0, 0, 0], mask[0, 0, 1] = -np.inf, -1e9
    given["m"] = mask
    lowered = lower(graph, target)
    assert "cast mask" in [s.action for s in lowered.steps]
    runnable = lowered.model if target == "ort" else for_ort_check(lowered.model)
    got, want = g.run_ort(runnable, given)[0], expected(graph, given)[0]
    assert (got[0, :, 0] == 0).all()
    assert (got[0, :, 1] != 0).all()  # what exactly is a matter of rounding at the fill
    got[0, :, 1] = want[0, :, 1]
    np.testing.assert_allclose(got.astype(np.float64), want, atol=4e-3)


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (5, 7), (7,)])
def test_a_mask_of_unknown_rank(target: str, shape: tuple[int, ...]) -> None:
    graph = g.attention(f"bool[{','.join(map(str, shape))}]")
    given = g.feeds(graph)
    want = expected(graph, given)
    graph.graph.inputs[3].shape = None
    lowered = lower(graph, target).model
    runnable = lowered if target == "ort" else for_ort_check(lowered)
    compare(g.run_ort(runnable, given), want, 2e-6)
    if target != "ort":
        assert len(g.node(lowered, "Concat").inputs) == 4  # the mask is expanded to four axes, whatever it has


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx", "tensorrt"])
def test_lowering_again_changes_nothing(target: str) -> None:
    for case in ("causal-bool", "float[B,1,S,T]", "softcap", "small-head"):
        once = lower(CASES[case](), target).model
        twice = lower(once, target)
        assert twice.steps == ()
        assert [n.name for n in twice.model.graph] == [n.name for n in once.graph]
