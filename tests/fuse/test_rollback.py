"""Verification: an op that is written wrong is found on adversarial inputs and put back, and only that one."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from text_graphs import assert_same, expressions, parse

from export.fuse import Options, engine, fuse
from export.fuse.proof import adversary, compare, verify
from export.graph.build import Builder
from export.graph.values import Refusal

MASKED = """
g (float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,8] v, bool[B,1,S,T] m) => (float[B,4,S,8] y)
<float c = {0.25}, float cap = {5.0}, float hide = {-1e9}> {
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  s = MatMul(q, kt)
  scaled = Mul(s, c)
  small = Div(scaled, cap)
  bent = Tanh(small)
  capped = Mul(bent, cap)
  masked = Where(m, capped, hide)
  p = Softmax<axis = -1>(masked)
  y = MatMul(p, v)
}"""


def scale_wrong(node: ir.Node) -> None:
    node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].as_float() * 1.01)


def scale_dropped(node: ir.Node) -> None:
    del node.attributes["scale"]


def softcap_dropped(node: ir.Node) -> None:
    del node.attributes["softcap"]


def mask_dropped(node: ir.Node) -> None:
    node.replace_input_with(3, None)


def mask_inverted(node: ir.Node) -> None:
    where = node.inputs[3].producer()
    _, kept, fill = where.inputs
    where.replace_input_with(1, fill)
    where.replace_input_with(2, kept)


def fill_shallow(node: ir.Node) -> None:
    where = node.inputs[3].producer()
    where.replace_input_with(2, Builder(where, "shallow").constant(np.float32(-3.0)))


def fill_infinite(node: ir.Node) -> None:
    where = node.inputs[3].producer()
    where.replace_input_with(2, Builder(where, "deep").constant(np.float32(-np.inf)))


def keys_and_values_swapped(node: ir.Node) -> None:
    key, value = node.inputs[1:3]
    node.replace_input_with(1, value)
    node.replace_input_with(2, key)


def causal_added(node: ir.Node) -> None:
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)


def keys_transposed_wrongly(node: ir.Node) -> None:
    """Right only where there are as many keys as channels: the op does not run at the other sizes."""
    build = Builder(node, "wrong")
    node.replace_input_with(1, build("Transpose", node.inputs[1], dtype=ir.DataType.FLOAT, perm=(0, 1, 3, 2)))


SABOTAGE = (
    scale_wrong,
    scale_dropped,
    softcap_dropped,
    mask_dropped,
    mask_inverted,
    fill_shallow,
    fill_infinite,
    keys_and_values_swapped,
    causal_added,
    keys_transposed_wrongly,
)


def sabotaged(monkeypatch: pytest.MonkeyPatch, break_it: Callable[[ir.Node], None], only: str = "") -> None:
    """Lets the emitter write the right op and then breaks it."""
    emit = engine.emit

    def wrong(block, agreed, masked_rows, prover):
        emitted = emit(block, agreed, masked_rows, prover)
        if only in (block.softmax.name or ""):
            break_it(emitted.node)
        return emitted

    monkeypatch.setattr(engine, "emit", wrong)


@pytest.mark.parametrize("break_it", SABOTAGE, ids=lambda f: f.__name__)
def test_a_wrong_op_is_put_back(break_it: Callable[[ir.Node], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(MASKED)
    sabotaged(monkeypatch, break_it)
    (unchecked,) = fuse(model, Options(verify=False)).attentions
    assert unchecked.status == "fused"  # so nothing but verification stops it
    result = fuse(model)
    (row,) = result.attentions
    assert (row.status, row.op, row.name, row.verify) == ("kept", "Softmax", "Softmax_p", None)
    assert row.code.startswith("V90") and row.reason.startswith("'Softmax_p/Attention' ")
    assert ir.to_proto(result.model).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_a_row_that_was_nan_may_become_zero_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_instead(node: ir.Node) -> None:
        build = Builder(node, "mean")
        zero, deep = (build.constant(np.float32(x)) for x in (0.0, -1e30))
        node.replace_input_with(3, build("Where", node.inputs[3], zero, deep, dtype=ir.DataType.FLOAT))

    model = parse(MASKED.replace("-1e9", "-inf"))
    assert fuse(model).attentions[0].status == "fused"
    sabotaged(monkeypatch, mean_instead)
    (row,) = fuse(model).attentions
    assert (row.status, row.code) == ("kept", "V906")


def test_the_reason_says_how_far_off_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotaged(monkeypatch, scale_wrong)
    (row,) = fuse(parse(MASKED)).attentions
    assert row.code == "V907"
    assert "differs from what it replaced by" in row.reason and "its budget is" in row.reason


def test_the_right_one_beside_a_wrong_one_stays_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(
        """g (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v) => (float[B,4,S,8] y) {
        s = MatMul(q, k)
        right = Softmax<axis = -1>(s)
        x = MatMul(right, v)
        r = MatMul(x, k)
        wrong = Softmax<axis = -1>(r)
        y = MatMul(wrong, v)
        }"""
    )
    sabotaged(monkeypatch, scale_wrong, only="wrong")
    result = fuse(model)
    assert [(row.name, row.status) for row in result.attentions] == [
        ("Softmax_right/Attention", "fused"),
        ("Softmax_wrong", "kept"),
    ]
    text = expressions(result.model.graph)
    assert text.count("Attention") == text.count("Softmax") == 1
    assert_same(model, result.model)


def test_a_wrong_op_of_nameless_nodes_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(MASKED)
    for node in model.graph:
        node.name = ""
    sabotaged(monkeypatch, scale_wrong)
    (row,) = fuse(model).attentions
    assert (row.status, row.code, row.name) == ("kept", "V907", "p")


ROTATED = """
g (float[B,4,S,8] q, float[B,4,S,8] k, float[B,4,S,8] v, float[S,4] cos, float[S,4] sin)
  => (float[B,4,S,8] y) {
  q0, q1 = Split<axis = -1>(q)
  a = Mul(q0, cos)
  b = Mul(q1, sin)
  c = Mul(q1, cos)
  d = Mul(q0, sin)
  r0 = Sub(a, b)
  r1 = Add(c, d)
  r = Concat<axis = -1>(r0, r1)
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  s = MatMul(r, kt)
  p = Softmax<axis = -1>(s)
  y = MatMul(p, v)
}"""


def pairing_changed(node: ir.Node) -> None:
    node.attributes["interleaved"] = ir.AttrInt64("interleaved", 1)


def tables_swapped(node: ir.Node) -> None:
    cos, sin = node.inputs[1:3]
    node.replace_input_with(1, sin)
    node.replace_input_with(2, cos)


@pytest.mark.parametrize("break_it", [pairing_changed, tables_swapped], ids=lambda f: f.__name__)
def test_a_wrong_rotation_is_put_back_and_its_attention_stays(break_it, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(ROTATED)
    rotations = engine.fuse_rotations

    def wrong(graph, refused=()):
        written = rotations(graph, refused)
        for rotated in written.written:
            break_it(rotated.node)
        return written

    assert fuse(model).attentions[0].rope == "q"
    monkeypatch.setattr(engine, "fuse_rotations", wrong)
    result = fuse(model)
    (row,) = result.attentions
    assert (row.status, row.rope) == ("fused", "none")
    assert "RotaryEmbedding" not in expressions(result.model.graph)
    assert_same(model, result.model)


def comparison(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[np.ndarray], np.ndarray]) -> str:
    """Fuses with the new region's results spoilt; returns the code of the refusal."""
    run = compare._session
    sessions = []

    def session(model, threads):
        sessions.append(model)
        inner, is_new = run(model, threads), len(sessions) % 2 == 0  # the region before comes first
        return lambda feeds: {n: spoil(a) if is_new and n == "y" else a for n, a in inner(feeds).items()}

    with monkeypatch.context() as patch:
        patch.setattr(compare, "_session", session)
        (row,) = fuse(parse(MASKED)).attentions
    return row.code


def test_results_of_another_shape_or_without_numbers_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert comparison(monkeypatch, lambda a: a) == "F001"
    assert comparison(monkeypatch, lambda a: a[..., :1]) == "V905"
    assert comparison(monkeypatch, lambda a: np.where(np.arange(a.shape[-1]) == 0, np.nan, a)) == "V906"
    assert comparison(monkeypatch, lambda a: np.where(np.arange(a.shape[-1]) == 0, np.inf, a)) == "V906"


def test_a_block_that_ran_nowhere_is_not_called_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "TRIALS", adversary.TRIALS[1:2])  # all sizes one: tells nothing apart
    (row,) = fuse(parse(MASKED)).attentions
    assert (row.status, row.code) == ("kept", "V903")


def test_a_region_that_cannot_be_drawn_is_not_called_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(values, sizes):
        raise ValueError("the shape of 'q' is not known")

    monkeypatch.setattr(adversary, "bind", unknown)
    (row,) = fuse(parse(MASKED)).attentions
    assert (row.status, row.code) == ("kept", "V904")
    assert "'q'" in row.reason


def test_an_op_whose_result_had_no_name_before_is_not_called_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "visible", lambda *_: None)
    (row,) = fuse(parse(MASKED)).attentions
    assert (row.status, row.code) == ("kept", "V901")


def test_a_region_that_no_runtime_loads_is_not_called_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model, threads):
        raise Refusal("V908", "ONNX Runtime does not load the region: no.")

    monkeypatch.setattr(compare, "_session", refuse)
    (row,) = fuse(parse(MASKED)).attentions
    assert (row.status, row.code) == ("kept", "V908")
