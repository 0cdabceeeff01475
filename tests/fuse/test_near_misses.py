"""What looks like one Attention and is not stays as it is, with a stable code; what is one after all means the same."""

import re
from collections import Counter
from pathlib import Path

import pytest
from text_graphs import Golden, assert_same, check, parse, read_goldens, serialised

from export.fuse import Options, fuse

FOLDER = Path(__file__).parent / "goldens"
NEAR_MISSES = read_goldens((FOLDER / "near_misses.txt").read_text())

ELSEWHERE = {
    "K103": "test_more_nodes_than_any_spelling_has",
    "K199": "test_a_required_input_that_is_missing",
    "K901": "test_opset",
    "K902": "test_opset",
    "K904": "test_opset",
    "K903": "test_whole_models",
}
"""Codes whose graph is not written as text, and the test that shows them."""


@pytest.mark.parametrize("case", NEAR_MISSES, ids=str)
def test_near_miss(case: Golden) -> None:
    before = parse(case.before)
    result = fuse(before)
    found = [f"kept {row.code}" if row.status == "kept" else row.status for row in result.attentions]
    assert ("\n".join(found) or "nothing") == case.after
    if "fused" in found:
        check(result.model)
    else:
        assert serialised(result.model) == serialised(before)
    assert_same(before, result.model)
    # refused by what it says, not only by the numbers: verification is a net below the reader, not a part of it
    assert serialised(fuse(before, Options(verify=False)).model) == serialised(result.model)


def test_every_refusal_code_has_a_graph_that_shows_it() -> None:
    shown = {code for file in FOLDER.iterdir() for code in re.findall(r"^kept (K\d{3})", file.read_text(), re.M)}
    source = [f for room in ("fuse", "graph") for f in (Path(__file__).parents[2] / "export" / room).rglob("*.py")]
    known = {code for file in source for code in re.findall(r'Refusal\(\s*"(K\d{3})"', file.read_text())}
    assert known - set(ELSEWHERE) == shown
    assert not shown & set(ELSEWHERE)


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(map(str, NEAR_MISSES)).items() if count > 1] == []


def test_a_reason_is_a_sentence_and_names_the_node() -> None:
    for case in NEAR_MISSES:
        model = parse(case.before)
        names = {node.name for node in model.graph} | {v.name for node in model.graph for v in node.inputs if v}
        for row in fuse(model, Options(verify=False)).attentions:
            if row.status == "kept":
                assert row.reason[0].isupper() and row.reason.endswith("."), row.reason
                assert row.code.startswith("K2") or any(f"'{name}'" in row.reason for name in names), row.reason


def test_more_nodes_than_any_spelling_has() -> None:
    steps = "\n".join(f"s{i + 1} = Add(s{i}, m)" for i in range(70))
    model = parse(
        f"""g (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v, float[S,T] m) => (float[B,4,S,8] y) {{
        s0 = MatMul(q, k)
        {steps}
        p = Softmax<axis = -1>(s70)
        y = MatMul(p, v)
        }}"""
    )
    (row,) = fuse(model).attentions
    assert (row.status, row.code) == ("kept", "K103")


@pytest.mark.parametrize("node", ["Softmax_p", "Add_d", "MatMul_s"])
def test_a_required_input_that_is_missing(node: str) -> None:
    model = parse(
        """g (float[B,4,S,8] q, float[B,4,8,T] k, float[B,4,T,8] v, float[S,T] m) => (float[B,4,S,8] y) {
        s = MatMul(q, k)
        d = Add(s, m)
        p = Softmax<axis = -1>(d)
        y = MatMul(p, v)
        }"""
    )
    next(n for n in model.graph if n.name == node).replace_input_with(0, None)
    (row,) = fuse(model).attentions
    assert (row.status, row.code) == ("kept", "K199")


def test_half_precision_types_are_not_widened_copies_of_each_other() -> None:
    """Not run: ONNX Runtime's CPU provider has no bfloat16 product."""
    model = parse(
        """g (float16[B,4,S,8] q, float16[B,4,8,T] k, float16[B,4,T,8] v) => (bfloat16[B,4,S,8] y) {
        s = MatMul(q, k)
        p = Softmax<axis = -1>(s)
        d = Cast<to = 16>(p)
        u = Cast<to = 16>(v)
        y = MatMul(d, u)
        }"""
    )
    (row,) = fuse(model, Options(verify=False)).attentions
    assert (row.status, row.code) == ("kept", "K205")
