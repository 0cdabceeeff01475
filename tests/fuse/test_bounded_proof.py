"""A verification takes no more threads and no more memory than it says, and says the same however it is cut up."""

import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from text_graphs import parse

from export.fuse import fuse
from export.fuse.proof import compare, error_bounds, workers
from export.fuse.proof.error_bounds import attention_bounds

OPS = {
    "plain": "y = Attention(q, k, v)",
    "causal, softcap": "y = Attention<is_causal = 1, softcap = 4.0>(q, k, v)",
    "bool": "y = Attention(q, k, v, hide)",
    "float": "y = Attention<scale = 0.5>(q, k, v, bias)",
    "past": 'y, a, b = Attention<is_causal = 1>(q, k, v, "", pk, pv)',
    "scores": 'y, a, b, s = Attention<qk_matmul_output_mode = 1>(q, k, v, bias)',
    "weights": 'y, a, b, s = Attention<qk_matmul_output_mode = 3>(q, k, v, bias)',
}  # fmt: skip


def attention(op: str, batch: int, heads: int, length: int) -> tuple[ir.Node, dict[str, np.ndarray]]:
    """An Attention of `heads` heads and half as many of keys, and what it reads."""
    model = parse(
        '<ir_version: 10, opset_import: ["": 23]> '
        "g (float[B,H,S,8] q, float[B,K,T,8] k, float[B,K,T,8] v, bool[B,1,1,T] hide, float[H,S,T] bias, "
        f"float[B,K,P,8] pk, float[B,K,P,8] pv) => (float[B,H,S,8] y) {{ {OPS[op]} }}"
    )
    rng = np.random.default_rng(0)
    shape = (batch, heads, length, 8)
    few = (batch, heads // 2, length, 8)
    drawn = {n: rng.standard_normal(s, np.float32) for n, s in {"q": shape, "k": few, "v": few}.items()}
    drawn |= {n: rng.standard_normal((batch, heads // 2, 3, 8), np.float32) for n in ("pk", "pv")}
    drawn["hide"] = rng.random((batch, 1, 1, length)) > 0.3
    drawn["bias"] = np.where(rng.random((heads, length, length)) > 0.3, 1.0, -1e9).astype(np.float32)
    return next(node for node in model.graph if node.op_type == "Attention"), drawn


@pytest.mark.parametrize("op", OPS)
def test_bounds_in_pieces_are_those_of_the_whole(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node, known = attention(op, 2, 4, 20)
    whole = attention_bounds(node, known, inside=True)
    # float64 adds in another order: the bound of the attention itself (error_bounds.py), with float64's roundoff
    score = 8 * max(float(np.abs(known[name]).max()) for name in ("q", "k", "pk")) ** 2
    rounding = 20 * 2.0**-53 * (2 + score)
    monkeypatch.setattr(error_bounds, "PIECE", 90)  # four rows of twenty keys, less than a head
    monkeypatch.setattr(workers, "count", lambda: 3)
    for one, other in zip(whole, attention_bounds(node, known, inside=True), strict=True):
        np.testing.assert_allclose(other, one, rtol=rounding)


def test_bounds_hold_a_few_pieces_and_never_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_bounds, "PIECE", 1 << 14)
    monkeypatch.setattr(workers, "count", lambda: 2)
    node, known = attention("float", 1, 4, 1024)
    attention_bounds(*attention("float", 1, 4, 256), inside=False)  # what is imported once
    tracemalloc.start()
    outside, _ = attention_bounds(node, known, inside=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    head = 8 * sum(known[n][0, 0].size for n in "qkvkv")  # a head of keys and values in float64, and their sizes
    pieces = 2 * (error_bounds.ARRAYS * 8 * (1 << 14) + 2 * head)
    scores = 8 * 4 * 1024 * 1024
    assert peak <= outside.nbytes + pieces + 100_000 < scores / 5, (peak, pieces)


def test_no_more_threads_than_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(3)))
    at_work: set[int] = set()
    most = []

    def work(_: int) -> None:
        at_work.add(threading.get_ident())
        most.append(len(at_work))
        time.sleep(0.002)
        at_work.discard(threading.get_ident())

    workers.side_by_side(work, range(40))
    assert (len(most), max(most)) == (40, 3)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(200)))
    assert workers.count() == workers.MOST


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_a_piece_raises_is_raised_and_the_rest_is_left(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "count", lambda: 2)
    begun = []

    def work(piece: int) -> None:
        begun.append(piece)
        time.sleep(0.005)
        if piece == 3:
            raise error("no")

    with pytest.raises(error, match="no"):
        workers.side_by_side(work, range(1000))
    assert len(begun) < 50


def test_one_region_is_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five blocks that are five computations: the sessions of one are gone before those of the next are made."""
    scales = (0.1, 0.2, 0.3, 0.4, 0.5)
    x, body = "q", ""
    for at, _ in enumerate(scales):
        body += f"kt{at} = Transpose<perm = [0, 1, 3, 2]>(k) s{at} = MatMul({x}, kt{at}) t{at} = Mul(s{at}, c{at}) "
        body += f"p{at} = Softmax<axis = -1>(t{at}) a{at} = MatMul(p{at}, v) "
        x = f"a{at}"
    numbers = ", ".join(f"float c{at} = {{{scale}}}" for at, scale in enumerate(scales))
    head = "g (float[B,2,S,4] q, float[B,2,T,4] k, float[B,2,T,4] v) => (float[B,2,S,4] y)"
    opened: weakref.WeakSet[Callable[..., object]] = weakref.WeakSet()
    held = []

    def session(*given: object, make=compare._session) -> Callable[..., object]:
        run = make(*given)
        opened.add(run)
        held.append(len(opened))
        return run

    monkeypatch.setattr(compare, "_session", session)
    assert fuse(parse(f"{head} <{numbers}> {{ {body} y = Identity({x}) }}")).summary.fused == 5
    assert len(held) == 10
    assert max(held) == 2


def test_a_large_region_is_given_the_processors_and_a_small_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def session(model: object, count: int, make=compare._session) -> Callable[..., object]:
        threads.append(count)
        return make(model, count)

    monkeypatch.setattr(compare, "_session", session)
    monkeypatch.setattr(workers, "count", lambda: 2)
    nodes = "kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax<axis = -1>(s) y = MatMul(p, v)"
    for length in ("S", "1100"):
        tensor = f"float[1,1,{length},4]"
        assert fuse(parse(f"g ({tensor} q, {tensor} k, {tensor} v) => ({tensor} y) {{ {nodes} }}")).summary.fused == 1
    assert threads == [1, 1, 2, 2]
