"""What becomes of proved masks: attributes, narrower tensors or nothing, in what was fused and what came as one op."""

import numpy as np
import onnx_ir as ir
import pytest
from derived import is_mean, truth, within
from text_graphs import assert_same, check, draw, parse, serialised, session

from export.fuse import FuseResult, Options, fuse
from export.graph.values import dims
from export.lower import lower

LOWEST = "-3.4028235e38"
HEAD = '<ir_version: 10, opset_import: ["": 23]>'
INPUTS = "float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, int64[B,S] pad, bool[B,1,S,S] m, float[1,2,1,S] slope"
CONSTANTS = f"""
int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] first = {{0}}, int64[1] last = {{1}},
int64[2] middle = {{1, 2}}, int64[4] four = {{0, 1, 1, 1}}, float none = {{0.0}}, float inf = {{-inf}},
float big = {{-1e9}}, float low = {{{LOWEST}}}, float shallow = {{-1e4}}, float tiny = {{1e-8}}
"""
POSITIONS = """
  shape = Shape<start = 2, end = 3>(q)
  length = Squeeze(shape)
  j = Range(zero, length, one)
  i = Unsqueeze(j, last)
  causal = LessOrEqual(j, i)
  flag = Cast<to = 9>(pad)
  padding = Unsqueeze(flag, middle)
  near = Sub(i, two)
  window = Greater(j, near)
"""
BY_HAND = """
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  s = MatMul(q, kt)
  %s
  w = Softmax<axis = -1>(x)
  y = MatMul(w, v)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})

MASKS = {
    # name: (nodes that make `mask` or `numbers`, kind, is_causal, dimensions of the mask input)
    "causal": ("mask = And(causal, causal)", "causal", 1, None),
    "causal, padding": ("mask = And(causal, padding)", "causal+padding", 1, ("B", 1, 1, "S")),
    "padding over queries": (
        "ever = GreaterOrEqual(i, zero)\n mask = And(ever, padding)", "padding", 0, ("B", 1, 1, "S"),
    ),
    "causal, padding, expanded": (
        "b = And(causal, padding)\n sizes = Shape(m)\n mask = Expand(b, sizes)", "causal+padding", 1, ("B", 1, 1, "S"),
    ),
    "causal and a condition": ("mask = And(causal, m)", "causal+bool", 0, ("B", 1, "S", "S")),
    "causal, window": ("mask = And(causal, window)", "causal+window", 0, ("S", "S")),
    "hides nothing": ("a = Add(i, j)\n mask = GreaterOrEqual(a, zero)", "none", 0, None),
    "not causal": ("mask = Less(j, i)", "window", 0, ("S", "S")),
}  # fmt: skip


def graph(nodes: str) -> ir.Model:
    return parse(f"{HEAD}\ng ({INPUTS}) => (float[B,2,S,8] y)\n<{CONSTANTS}> {{ {POSITIONS} {nodes} }}")


def attention(result: FuseResult) -> ir.Node:
    (node,) = (n for n in result.model.graph if n.op_type == "Attention")
    return node


def described(result: FuseResult) -> tuple[int, tuple[int | str, ...] | None]:
    node = attention(result)
    causal = node.attributes.get("is_causal")
    return 0 if causal is None else causal.as_int(), dims(node.inputs[3]) if len(node.inputs) > 3 else None


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("came", ["by hand", "as one op"])
def test_a_boolean_mask(name: str, came: str) -> None:
    nodes, kind, causal, shape = MASKS[name]
    if came == "by hand":
        model = graph(nodes + BY_HAND % "x = Where(mask, s, inf)")
    else:
        model = graph(nodes + "\n y = Attention<scale = 1.0>(q, k, v, mask)")
    result = fuse(model)
    (row,) = result.attentions
    changed = (causal, shape) != (0, ("B", 1, "S", "S")) and name not in ("causal, window", "not causal")
    assert row.mask == (kind if kind != "causal+bool" else "causal+bool")
    assert row.code == ("F001" if came == "by hand" else "A002" if changed else "A001"), row.reason
    if row.code != "A001":
        assert row.verify is not None and row.verify.cases >= 4
    have = described(result)
    assert have[0] == causal
    if row.code != "A001":  # an unchanged graph has the shapes it came with
        assert have[1] == shape or (shape == ("S", "S") and have[1] == (1, 1, "S", "S"))
    check(result.model)
    assert_same(model, result.model, SIZES)
    for once in (result.model, lower(result.model, "ort").model):
        assert serialised(fuse(once).model) == serialised(once)


NUMBERS = {
    # name: (nodes that make `t`, asked-for meaning of rows without keys, kind, is_causal, type and dimensions, zeroed)
    "causal": ("t = Where(causal, none, low)", "keep", "causal", 1, None, False),
    "causal -1e9": ("t = Where(causal, none, big)", "keep", "causal", 1, None, False),
    "causal -1e4": ("t = Where(causal, none, shallow)", "keep", "float", 0, (ir.DataType.FLOAT, ("S", "S")), False),
    "causal -inf": ("t = Where(causal, none, inf)", "keep", "causal", 1, None, False),
    "causal, padding": (
        "c = And(causal, padding)\n t = Where(c, none, low)",
        "keep", "causal+padding", 0, (ir.DataType.FLOAT, ("B", 1, "S", "S")), False,
    ),
    "causal, padding, zero": (
        "c = And(causal, padding)\n t = Where(c, none, low)",
        "zero", "causal+padding", 1, (ir.DataType.BOOL, ("B", 1, 1, "S")), True,
    ),
    "causal, padding -inf": (
        "c = And(causal, padding)\n t = Where(c, none, inf)",
        "keep", "causal+padding", 1, (ir.DataType.BOOL, ("B", 1, 1, "S")), False,
    ),
    "two stacked": (
        "a = Where(causal, none, low)\n b = Where(padding, none, low)\n t = Add(a, b)",
        "keep", "causal+padding", 0, (ir.DataType.FLOAT, ("B", 1, "S", "S")), False,
    ),
    "two stacked, zero": (
        "a = Where(causal, none, low)\n b = Where(padding, none, low)\n t = Add(a, b)",
        "zero", "causal+padding", 1, (ir.DataType.BOOL, ("B", 1, 1, "S")), True,
    ),
    "padding over queries": (
        "e = GreaterOrEqual(i, zero)\n c = And(e, padding)\n t = Where(c, none, low)",
        "keep", "padding", 0, (ir.DataType.FLOAT, ("B", 1, 1, "S")), False,
    ),
    "window and padding, zero": (
        "c = And(window, padding)\n t = Where(c, none, low)",
        "zero", "window+padding", 0, (ir.DataType.FLOAT, ("B", 1, "S", "S")), False,
    ),
    "a slope under causal": (
        "t = Where(causal, slope, inf)", "keep", "causal+float", 1, (ir.DataType.FLOAT, (1, 2, 1, "S")), False,
    ),
    "a slope that may hide keys": (
        "a = Where(causal, none, big)\n t = Add(a, slope)",
        "keep", "causal+float", 0, (ir.DataType.FLOAT, (1, 2, "S", "S")), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("came", ["by hand", "as one op"])
def test_a_mask_of_numbers(name: str, came: str) -> None:
    nodes, policy, kind, causal, mask, zeroed = NUMBERS[name]
    if name == "window and padding, zero" and came == "by hand":  # read as a fill, it can be what was asked for
        mask, zeroed = (ir.DataType.BOOL, mask[1]), True
    node = "\n y = Attention<scale = 1.0>(q, k, v, t)" if came == "as one op" else BY_HAND % "x = Add(s, t)"
    model = graph(nodes + node)
    result = fuse(model, Options(masked_rows=policy))
    (row,) = result.attentions
    assert row.mask == kind or (kind == "float" and row.mask in ("float", "bool"))
    expected = "zero" if zeroed or ("-inf" in name and came == "by hand" and "padding" in name) else "keep"
    assert row.masked_rows == expected, row.reason
    have = described(result)
    assert have[0] == causal
    if row.code != "A001":
        wanted = None if mask is None else mask[1]
        assert have[1] == wanted or (wanted == ("S", "S") and have[1] == (1, 1, "S", "S"))
    if mask is not None and row.code != "A001":
        assert attention(result).inputs[3].dtype == mask[0]
    check(result.model)
    if not zeroed:
        assert_same(model, result.model, SIZES)
        return
    # left padding leaves the first query of the first row no key, right padding the last one under a window
    alone, first = (4, [1, 0, 0, 0, 0]) if "window" in name else (0, [0, 1, 1, 0, 1])
    feeds = draw(model, SIZES[0]) | {"pad": np.asarray([first, [1, 1, 0, 1, 1]])}
    (old,), (new,) = session(model)(feeds), session(result.model)(feeds)
    empty = (new == 0).all(-1)
    assert empty[0, :, alone].all() and not empty[1].any()
    values = np.broadcast_to(feeds["v"][:, :, None], (*old.shape[:3], *feeds["v"].shape[2:]))
    if "stacked" not in name:  # two numbers on one key are deeper than one
        assert is_mean(old, values)[empty].all()
    (want,) = truth(model, feeds)
    assert within(old, want)[~empty].all() and within(new, want)[~empty].all()


def test_layers_share_one_mask() -> None:
    layers = "x = Attention<scale = 1.0>(q, k, v, mask)\n y = Attention<scale = 1.0>(x, k, v, mask)"
    nodes = f"mask = And(causal, padding)\n {layers}"
    result = fuse(graph(nodes))
    one, two = (n for n in result.model.graph if n.op_type == "Attention")
    assert one.inputs[3] is two.inputs[3] and dims(one.inputs[3]) == ("B", 1, 1, "S")
    assert_same(graph(nodes), result.model, SIZES)


def test_a_longer_padding_is_cut_to_the_batch() -> None:
    """Elements picked one by one say nothing about the size of what they are picked from."""
    text = f"""{HEAD}
    g (float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, int64[N,S] pad) => (float[B,2,S,8] y)
    <{CONSTANTS}> {{ {POSITIONS}
      count = Shape<start = 0, end = 1>(q)
      batch = Squeeze(count)
      b = Range(zero, batch, one)
      picked = Gather<axis = 0>(flag, b)
      wide = Unsqueeze(picked, middle)
      mask = And(causal, wide)
      y = Attention<scale = 1.0>(q, k, v, mask)
    }}"""
    model = parse(text)
    result = fuse(model)
    assert described(result) == (1, ("B", 1, 1, "S"))
    assert_same(model, result.model, ({"B": 2, "S": 5, "N": 4}, {"B": 3, "S": 4, "N": 3}))


def test_a_mask_whose_length_is_not_surely_that_of_the_keys_stays() -> None:
    text = f"""{HEAD}
    g (float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, int64[B,N] pad) => (float[B,2,S,8] y)
    <{CONSTANTS}> {{
      shape = Shape<start = 1, end = 2>(pad)
      length = Squeeze(shape)
      j = Range(zero, length, one)
      i = Unsqueeze(j, last)
      mask = LessOrEqual(j, i)
      y = Attention<scale = 1.0>(q, k, v, mask)
    }}"""
    (row,) = fuse(parse(text)).attentions
    assert (row.code, row.mask) == ("A001", "bool")


def test_scores_that_are_shown_keep_their_mask() -> None:
    text = f"""{HEAD}
    g ({INPUTS}) => (float[B,2,S,8] y, float[B,2,S,S] shown)
    <{CONSTANTS}> {{ {POSITIONS}
      t = Where(causal, none, low)
      y, pk, pv, shown = Attention<scale = 1.0, qk_matmul_output_mode = 2>(q, k, v, t)
    }}"""
    assert fuse(parse(text)).attentions[0].code == "A001"


PADDED = """seen = Cast<to = 9>(pad)
      own = Gather<axis = 1>(seen, j)
      padding = Unsqueeze(own, middle)
      mask = And(causal, padding)"""


@pytest.mark.parametrize("nodes", ["mask = Identity(causal)", PADDED], ids=["causal", "padding by position"])
def test_causal_from_the_last_key_is_causal_after_a_past(nodes: str) -> None:
    """j <= i + P with P keys in the past is what the operator does; padding then has a column for each of P + S."""
    text = f"""{HEAD}
    g (float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[B,2,P,8] pk, float[B,2,P,8] pv, int64[B,U] pad)
      => (float[B,2,S,8] y)
    <{CONSTANTS}> {{
      shape = Shape<start = 2, end = 3>(q) more = Shape<start = 2, end = 3>(pk)
      total = Add(shape, more) all = Squeeze(total) past = Squeeze(more)
      j = Range(zero, all, one) rows = Range(past, all, one) i = Unsqueeze(rows, last)
      causal = LessOrEqual(j, i)
      {nodes}
      y = Attention<scale = 1.0>(q, k, v, mask, pk, pv)
    }}"""
    model = parse(text)
    result = fuse(model, Options(verify=False))
    causal, shape = described(result)
    assert causal == 1 and shape in (None, ("B", 1, 1, None))
    sizes = ({"B": 2, "S": 3, "P": 4, "U": 9}, {"B": 1, "S": 1, "P": 5, "U": 6}, {"B": 2, "S": 4, "P": 0, "U": 4})
    assert_same(model, result.model, sizes)


def test_what_verification_refuses_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is put back, the fusion stays."""
    from export.fuse.masks import upgrade

    monkeypatch.setattr(upgrade, "all_of", lambda parts: upgrade.TRUE)  # forgets the padding
    nodes = "mask = And(causal, padding)" + BY_HAND % "x = Where(mask, s, inf)"
    result = fuse(graph(nodes))
    (row,) = result.attentions
    assert row.code == "F001" and described(result) == (0, ("B", 1, "S", "S"))
    assert_same(graph(nodes), result.model, SIZES)


@pytest.mark.parametrize(("fill", "op"), [("-65504", "Where"), ("-65504", "Add"), ("-inf", "Where")])
def test_in_half_precision_no_row_is_opened_that_sees_a_key_anyway(fill: str, op: str) -> None:
    """A finite number in half precision does not swallow the scores, so Q is guarded; not where all rows have keys."""
    masking = "x = Where(causal, s, f)" if op == "Where" else "t = Where(causal, o, f)\n x = Add(s, t)"
    model = parse(f"""{HEAD}
    g (float16[B,2,S,8] q, float16[B,2,S,8] k, float16[B,2,S,8] v) => (float16[B,2,S,8] y)
    <int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{1}}, float wide = {{{fill}}}, float none = {{0.0}}> {{
      f = Cast<to = 10>(wide)
      o = Cast<to = 10>(none)
      shape = Shape<start = 2, end = 3>(q)
      length = Squeeze(shape)
      j = Range(zero, length, one)
      i = Unsqueeze(j, last)
      causal = LessOrEqual(j, i)
      {BY_HAND % masking}
    }}""")
    result = fuse(model)
    assert described(result) == (1, None)
    assert {n.op_type for n in result.model.graph} == {"Attention"}
    assert (result.attentions[0].mask, result.attentions[0].masked_rows) == ("causal", "keep")
    assert result.attentions[0].reason == "Softmax attention became one op; its mask is is_causal."
    assert_same(model, result.model, SIZES)


def test_a_number_that_is_scaled_to_nothing_hides_nothing() -> None:
    """-1e9 times 1e-8 is -10: the keys it was written over keep weight."""
    model = graph(BY_HAND % "h = Where(causal, s, big)\n x = Mul(h, tiny)")
    result = fuse(model)
    assert not any("is_causal" in node.attributes for node in result.model.graph)
    assert_same(model, result.model, SIZES)
