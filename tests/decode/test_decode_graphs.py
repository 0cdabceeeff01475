"""What a decode graph is made of: positions that are no padding's, a model's own cache, what is refused, engines."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoders import Decoder, decoder, growing, judged, opened, static
from text_decoder import LONGEST, TEXT, model

from engines import graph, profiles
from engines.build import build_engine
from engines.decoding import Decoding
from engines.errors import CacheFullError, RaggedError, UsageError
from engines.generator import Generator
from export.decode.given import given
from export.decode.grow import grow
from export.decode.judge import Judge, Own
from export.decode.static import WRITE_INDICES, Static
from export.decode.uncached import uncached
from export.lower import lower
from export.lower.lengths import POSITIVE
from export.onnx_subject import OnnxSubject
from export.parity.result import ParityRow

NOTHING = Own()
DIMS = {"B": (1, 2, 4), "L": (1, 8, LONGEST), "past": (1, 8, LONGEST)}


def rows(path: Path, written: ir.Model, loop: Generator, own: Own = NOTHING) -> dict[str, ParityRow]:
    """Returns the verdicts on a loop over an ONNX model, by case."""
    ir.save(written, path / "model.onnx")
    subject = OnnxSubject(path / "model.onnx", "fp32", 0)
    truth = subject.whole(subject.exported())
    judge = Judge(truth, loop.decoding, DIMS, ("B", "L"), own, "fp32")
    return {row.case: row for row in judge.rows("decode", lambda: Generator(loop._prefill, loop._step, judge.decoding))}


def fixed(fused: ir.Model, target: str) -> Generator:
    made = Static(fused, LONGEST)
    prefill, step = (opened(lower(m, target).model) for m in (made.prefill, made.step))
    return Generator(prefill, step, Decoding("static", made.tokens, None, made.caches, LONGEST, WRITE_INDICES))


def grown(fused: ir.Model) -> Generator:
    step = given(fused) or grow(fused)
    runner = opened(lower(step.model, "ort").model)
    return Generator(runner, runner, Decoding("growing", step.tokens, step.mask, step.caches, LONGEST))


def _changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


LAST = _changed(
    "here = Slice(table, zero, length, axes)",
    "behind = Neg(length)\n  few = Slice(table, zero, length, axes)\n  here = Slice(few, behind, length, axes)",
)
"""The last positions, as many as there are tokens: a size that shape inference does not tell."""


@pytest.mark.parametrize("text", [TEXT, LAST], ids=["first positions", "last positions"])
def test_learned_positions_and_a_bias_by_distance_are_those_of_the_step(text: str, tmp_path: Path) -> None:
    written = model(text)
    found = rows(tmp_path, written, grown(written))
    assert (found["steps"].status, found["cache-full"].status) == ("ok", "ok")
    assert all("no padding mask" in row.reason for case, row in found.items() if "padding" in case or case == "ragged")
    for target in ("ort", "tensorrt-rtx"):
        found = rows(tmp_path, written, fixed(written, target))
        assert {row.status for row in found.values()} == {"ok"}, found


def test_a_model_with_a_cache_of_its_own_keeps_it_or_gets_a_static_one(tmp_path: Path) -> None:
    step = grow(model())
    own = given(step.model)
    assert own is not None and own.caches == step.caches and own.tokens == ("x",)
    assert given(model()) is None
    for loop in (grown(step.model), fixed(uncached(own), "tensorrt-rtx")):
        found = rows(tmp_path, step.model, loop, Own(caches=own.caches))
        assert (found["steps"].status, found["cache-full"].status) == ("ok", "ok"), found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_changed("is_causal = 1, ", ""), "Attention 'a' is not causal"),
        (_changed("qm = MatMul(h, wq)", "t = Softmax<axis = 1>(h)\n  qm = MatMul(t, wq)"), "mixes tokens"),
        (
            _changed("qm = MatMul(h, wq)", "t = CumSum(h, one)\n  qm = MatMul(t, wq)"),
            "is not known to treat each token",
        ),
        (_changed("y = Reshape(a3, flat)", "r = Reshape(a3, flat)\n  y = ReduceMax<keepdims=1>(r, down)"), "ReduceMax"),
    ],
)
def test_a_model_that_mixes_tokens_is_refused_with_the_node(text: str, why: str) -> None:
    for make in (grow, lambda m: Static(m, LONGEST)):
        with pytest.raises(UsageError, match="cannot be split into prefill and steps") as told:
            make(model(text))
        assert why in str(told.value)


def test_a_cache_that_is_not_guarded_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "_refuse_full", lambda self, new, used: None)
    of = decoder("flash-packed")
    for graphs in (growing(of), static(of)):
        full = next(row for row in judged(of, graphs) if row.case == "cache-full")
        assert full.status == "fail"


def test_the_loop_says_what_it_cannot_do() -> None:
    of = decoder("flash-packed")
    loop = growing(of).loop()
    x = np.zeros((2, 4, 64), np.float32)
    with pytest.raises(UsageError, match="call prefill before step"):
        loop.step({"x": x[:, :1]})
    with pytest.raises(UsageError, match="The feeds lack x"):
        loop.prefill({})
    with pytest.raises(RaggedError, match=r"\[4, 3\] tokens of 4, and the graph has no padding mask"):
        loop.prefill({"x": x}, np.asarray([[1, 1, 1, 1], [0, 1, 1, 1]]))
    with pytest.raises(UsageError, match="Row 1 of `real` is not one run"):
        loop.prefill({"x": x}, np.asarray([[1, 1, 1, 1], [1, 0, 1, 1]]))
    with pytest.raises(CacheFullError, match="holds 64 tokens a row: 0 are in it, and 65 more"):
        loop.prefill({"x": np.zeros((1, 65, 64), np.float32)})
    loop.prefill({"x": x})
    with pytest.raises(UsageError, match="This step has 1 rows; the prompt had 2"):
        loop.step({"x": x[:1, :1]})
    fixed_loop = static(of).loop()
    fixed_loop.prefill({"x": x})
    with pytest.raises(UsageError, match="one token, and 2 were given"):
        fixed_loop.step({"x": x[:, :2]})


def test_padding_that_moves_positions_is_refused_where_the_cache_needs_it() -> None:
    loop = growing(decoder("llama-gqa-sdpa")).loop()
    still = Generator(loop._prefill, loop._step, Decoding(**{**loop.decoding.__dict__, "moves": False}))
    with pytest.raises(RaggedError, match="counts positions from the first column"):
        still.prefill({"x": np.zeros((1, 3, 64), np.float32)}, np.asarray([[0, 1, 1]]))


def test_lengths_are_counted_by_the_target_only_where_every_row_surely_has_a_key() -> None:
    text = """<ir_version: 10, opset_import: ["": 24]>
    g (float16[B,4,1,16] q, float16[B,2,32,16] k, float16[B,2,32,16] v, int64[B] n) => (float16[B,4,1,16] y) {
      y = Attention<scale = 0.25>(q, k, v, , , , n)
    }"""
    for promised, op in ((True, "TRT_Attention"), (False, "Attention")):
        made = ir.from_onnx_text(text)
        node = made.graph[0]
        if promised:
            node.metadata_props[POSITIVE] = "yes"
        lowered = lower(made, "tensorrt-rtx")
        (node,) = (n for n in lowered.model.graph if "Attention" in n.op_type)
        assert node.op_type == op
        assert (len(node.inputs) > 3 and node.inputs[3] is None) == promised
        draw = np.random.default_rng(0)
        feeds = {
            name: draw.standard_normal(shape).astype(np.float16)
            for name, shape in (("q", (2, 4, 1, 16)), ("k", (2, 2, 32, 16)), ("v", (2, 2, 32, 16)))
        }
        feeds["n"] = np.asarray([5, 32])
        seen = opened(lowered.model).run(feeds)["y"].astype(np.float64)
        wide = {name: x.astype(np.float64) for name, x in feeds.items()}
        scores = wide["q"] @ np.repeat(wide["k"], 2, 1).swapaxes(2, 3) * 0.25
        scores = np.where(np.arange(32) < feeds["n"][:, None, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        truth = weights / weights.sum(-1, keepdims=True) @ np.repeat(wide["v"], 2, 1)
        unit = 2.0**-11  # fused fp16: two roundings of weights and of the sum
        assert (np.abs(seen - truth) <= unit * (2 + np.abs(scores[np.isfinite(scores)]).max())).all()


@pytest.mark.parametrize("sm", [89, 120])
def test_the_attention_of_a_step_is_one_fused_kernel(tmp_path: Path, sm: int) -> None:
    pytest.importorskip("tensorrt_rtx")
    of: Decoder = decoder("mha-rope-causal", "fp16")
    graphs = static(of)
    for name, made, tactic in (("prefill", graphs.prefill, "gemm"), ("step", graphs.step, "mha")):
        path = tmp_path / f"{name}.onnx"
        ir.save(made, path)
        shapes = {t.name: t.shape for t in graph.read(path).inputs}
        profile = profiles.derive(shapes, {"batch": (1, 2, 8), "length": (1, 16, 128)})
        engine = build_engine(path, tmp_path / f"{name}.engine", vendor="tensorrt-rtx", sm=sm, profile=profile)
        (choice,) = engine.attentions.values()
        assert choice.fused, choice.why
        assert any(tactic in layer.tactic and "_mha_" in layer.tactic for layer in engine.layers)
