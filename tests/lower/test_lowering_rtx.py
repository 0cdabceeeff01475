"""What TensorRT-RTX builds of the lowered graphs, on any machine: which became one fused kernel, and that none fails.

Each lowered spelling here was chosen for its kernels; a builder that decides otherwise shows here first.
"""

from pathlib import Path

import lowering_graphs as g
import onnx_ir as ir
import pytest

from engines import vendor
from engines.build import BuiltEngine, build_engine
from engines.errors import BackendMissingError, EngineBuildError
from engines.profiles import derive
from export import model_file
from export.lower import lower
from export.lower.marks import unmark

try:
    vendor.load("tensorrt-rtx")
except BackendMissingError as missing:
    pytest.skip(str(missing), allow_module_level=True)

DIMS = {"B": (1, 2, 4), "S": (1, 128, 512), "T": (1, 128, 512), "P": (1, 64, 128), "PS": (2, 192, 640)}


def build(graph: ir.Model, folder: Path, sm: int = 89) -> BuiltEngine:
    path = folder / "model.onnx"
    model_file.save(graph, path)
    inputs = {
        v.name or "": tuple(d if isinstance(d, int) else str(d) for d in v.shape or ()) for v in graph.graph.inputs
    }
    return build_engine(path, folder / "model.engine", vendor="tensorrt-rtx", sm=sm, profile=derive(inputs, DIMS))


def kernels(engine: BuiltEngine) -> int:
    return sum(layer.kind != "shape_call" for layer in engine.layers)


CAUSAL = "is_causal: int = 1"
FUSED = {  # the one with two heads is taken apart, and its parts are fused again
    "plain": lambda t: g.attention(dtype=t, size=64),
    "bool-and-causal-grouped": lambda t: g.attention("bool[B,1,1,T]", CAUSAL, dtype=t, size=64, kv_heads=2),
    "float": lambda t: g.attention(f"{t}[B,4,S,T]", dtype=t, size=64),
    "small-head": lambda t: g.attention(dtype=t, size=8),
    "value-smaller": lambda t: g.attention(dtype=t, size=64, value_size=32),
    "value-larger-masked": lambda t: g.attention("bool[B,1,S,T]", dtype=t, size=64, value_size=128),
    "softmax-precision": lambda t: g.attention("", "softmax_precision: int = 1", dtype=t, size=64),
    "one-head-masked": lambda t: g.attention("bool[B,1,1,T]", dtype=t, size=64, heads=1, kv_heads=1),
    "one-query": lambda t: g.attention("bool[B,1,1,T]", dtype=t, size=20, queries="1"),
    "one-query-two-heads": lambda t: g.attention("bool[B,1,1,T]", dtype=t, heads=2, kv_heads=2, queries="1"),
    "window": lambda t: g.attention("", f"left_window_size: int = 16, {CAUSAL}", dtype=t, size=64, keys="S"),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", FUSED)
def test_lowered_halves_are_fused(case: str, dtype: str, tmp_path: Path) -> None:
    engine = build(lower(FUSED[case](dtype), "tensorrt-rtx").model, tmp_path)
    assert engine.attentions["attn"].fused is True, engine.attentions


@pytest.mark.parametrize("sm", [75, 80, 120])
def test_other_architectures(sm: int, tmp_path: Path) -> None:
    graph = FUSED["bool-and-causal-grouped"]("float16")
    assert build(lower(graph, "tensorrt-rtx").model, tmp_path, sm).attentions["attn"].fused is True


def test_a_finite_mask_with_its_guard_costs_fewer_kernels_than_a_bool_one(tmp_path: Path) -> None:
    graph = g.attention("bool[B,1,1,T]", dtype="float16", size=64)
    plain, lowered = build(graph, tmp_path), build(lower(graph, "tensorrt-rtx").model, tmp_path)
    assert kernels(lowered) <= kernels(plain) - 6


@pytest.mark.parametrize(
    "graph",
    [
        g.attention("bool[B,1,1,T]"),
        g.attention("", CAUSAL, dtype="float16", size=320),
        g.attention("bool[B,1,S,T]", f"softcap: float = 30.0, {CAUSAL}", dtype="bfloat16", kv_heads=2),
    ],
    ids=["fp32", "large-head", "softcap"],
)
def test_what_cannot_fuse_builds_unfused(graph: ir.Model, tmp_path: Path) -> None:
    engine = build(lower(graph, "tensorrt-rtx").model, tmp_path)
    assert engine.attentions["attn"].fused is False, engine.attentions


def test_without_its_mark_it_would_not_build(tmp_path: Path) -> None:
    lowered = lower(g.attention(), "tensorrt-rtx").model
    unmark(lowered)
    with pytest.raises(EngineBuildError):
        build(lowered, tmp_path)


def test_a_cache_builds_with_its_outputs(tmp_path: Path) -> None:
    half = "float16[B,4,{},64]"
    inputs = ", ".join(
        f"{half.format(d)} {n}" for d, n in (("S", "q"), ("S", "k"), ("S", "v"), ("P", "pk"), ("P", "pv"))
    )
    body = f"[attn] y, ok, ov = Attention <scale: float = 0.125, {CAUSAL}> (q, k, v, , pk, pv)"
    outputs = f"{half.format('S')} y, {half.format('PS')} ok, {half.format('PS')} ov"
    engine = build(lower(g.model(inputs, body, outputs), "tensorrt-rtx").model, tmp_path)
    assert engine.attentions["attn"].fused is True
    assert [o.name for o in engine.outputs] == ["y", "ok", "ov"]


SHARED = {
    "query": "[a] s = Attention <scale: float = 0.125> (q, k, v) [b] t = Attention <scale: float = 0.125> (q, l, w)",
    "key": "[a] s = Attention <scale: float = 0.125> (q, k, v) [b] t = Attention <scale: float = 0.125> (p, k, w)",
    "all": "[a] s = Attention <scale: float = 0.125> (q, q, q) [b] t = Attention <scale: float = 0.125> (q, q, v)",
    "scaled": """h = Constant <value_float: float = 0.5> () c = CastLike (h, k) z = Mul (k, c)
        [a] s = Attention <scale: float = 1.0> (q, z, v) [b] t = Attention <scale: float = 1.0> (p, z, w)""",
}


def shared(case: str) -> ir.Model:
    names = [n for n in "pqklvw" if f"{n}," in SHARED[case] or f"{n})" in SHARED[case]]
    inputs = ", ".join(f"float16[B,4,S,64] {n}" for n in names)
    return g.model(inputs, f"{SHARED[case]} y = Add (s, t)", "float16[B,4,S,64] y")


@pytest.mark.parametrize("case", SHARED)
def test_shared_operands_no_longer_crash_the_builder(case: str, tmp_path: Path) -> None:
    lowered = lower(shared(case), "tensorrt-rtx")
    assert {s.action for s in lowered.steps} == {"scale query"}
    engine = build(lowered.model, tmp_path)
    assert [engine.attentions[n].fused for n in "ab"] == [True, True]
    given = g.feeds(shared(case))
    (got,), (want,) = g.run_ort(lowered.model, given), g.run_ort(shared(case), given)
    assert abs(got.astype(float) - want.astype(float)).max() < 5e-3


def test_a_builder_that_no_longer_crashes_needs_no_such_step(tmp_path: Path) -> None:
    """When this fails, TensorRT-RTX was repaired: give its row "shared operands"."""
    with pytest.raises(EngineBuildError, match="crashed"):
        build(shared("query"), tmp_path)
