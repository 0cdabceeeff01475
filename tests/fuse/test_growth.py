"""The pass grows with the graph and not faster; shapes are inferred whole once, and what is inferred again is right."""

import gc
import sys
import time

import onnx_ir as ir
import pytest
from text_graphs import parse

from export.fuse import Options, fuse, prepare
from export.graph import refresh, shapes
from export.graph.values import graphs

LAYER = """
  sq_{n} = Shape(x_{n})
  b_{n} = Gather<axis = 0>(sq_{n}, zero)
  l_{n} = Gather<axis = 0>(sq_{n}, one)
  bu_{n} = Unsqueeze(b_{n}, zeros)
  lu_{n} = Unsqueeze(l_{n}, zeros)
  split_{n} = Concat<axis = 0>(bu_{n}, lu_{n}, heads, size)
  join_{n} = Concat<axis = 0>(bu_{n}, lu_{n}, width)
  q0_{n} = MatMul(x_{n}, w)
  q1_{n} = Reshape(q0_{n}, split_{n})
  q_{n} = Transpose<perm = [0, 2, 1, 3]>(q1_{n})
  k0_{n} = MatMul(x_{n}, w)
  k1_{n} = Reshape(k0_{n}, split_{n})
  k_{n} = Transpose<perm = [0, 2, 3, 1]>(k1_{n})
  v0_{n} = MatMul(x_{n}, w)
  v1_{n} = Reshape(v0_{n}, split_{n})
  v_{n} = Transpose<perm = [0, 2, 1, 3]>(v1_{n})
  qs_{n} = Shape(q_{n})
  d_{n} = Gather<axis = 0>(qs_{n}, last)
  df_{n} = Cast<to = 1>(d_{n})
  root_{n} = Sqrt(df_{n})
  s_{n} = MatMul(q_{n}, k_{n})
  t_{n} = Div(s_{n}, root_{n})
  ss_{n} = Shape(t_{n})
  wide_{n} = Expand(mask, ss_{n})
  m_{n} = Add(t_{n}, wide_{n})
  p_{n} = Softmax<axis = -1>(m_{n})
  a_{n} = MatMul(p_{n}, v_{n})
  c_{n} = Transpose<perm = [0, 2, 1, 3]>(a_{n})
  j_{n} = Reshape(c_{n}, join_{n})
  o_{n} = MatMul(j_{n}, w)
  e_{n} = Identity(o_{n})
  x_{m} = Add(x_{n}, e_{n})
"""


def stack(layers: int) -> ir.Model:
    """Layers as the TorchScript exporter writes them: every size is computed in the graph."""
    body = "\n".join(LAYER.format(n=n, m=n + 1) for n in range(layers))
    consts = """<int64 zero = {0}, int64 one = {1}, int64 last = {3}, int64[1] zeros = {0}, int64[1] heads = {2},
      int64[1] size = {2}, int64[1] width = {4}, float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>"""
    return parse(
        f"g (float[B,L,4] x_0, float[B,1,1,L] mask) => (float[B,L,4] y) {consts} {{ {body} y = Identity(x_{layers}) }}"
    )


def calls(model: ir.Model) -> int:
    """Every call of a function, Python's and C's, that fusing makes: a clock that no other process disturbs."""
    count = 0

    def step(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(step)
    try:
        result = fuse(model, Options(verify=False))
    finally:
        sys.setprofile(None)
    assert result.summary.kept == 0
    return count


def test_fusing_takes_steps_in_proportion_to_the_layers() -> None:
    calls(stack(2))  # what is imported and compiled once
    few, many = calls(stack(8)), calls(stack(32))
    assert many / few < 4.2, (few, many)


@pytest.mark.slow
def test_fusing_takes_time_in_proportion_to_the_layers() -> None:
    """What calls do not show: loops over lists inside one call. The bound is wide, growth with the square is 4."""
    seconds = []
    for layers in (32, 128):
        model = stack(layers)
        runs = []
        for _ in range(3):
            gc.collect()
            start = time.process_time()
            assert fuse(model, Options(verify=False)).summary.fused == layers
            runs.append(time.process_time() - start)
        seconds.append(min(runs) / layers)
    assert seconds[1] / seconds[0] < 1.6, seconds


def test_shapes_are_inferred_whole_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = []
    monkeypatch.setattr(shapes, "_infer_all", lambda *args, real=shapes._infer_all: (whole.append(1), real(*args)))
    assert fuse(stack(2), Options(verify=False)).summary.fused == 2
    assert len(whole) == 1


def test_what_is_inferred_again_is_what_the_whole_inference_says(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def both(model: ir.Model) -> None:
        infer(model)
        whole = model.clone()
        refresh.forget(whole)
        infer(whole)
        for one, two in zip(graphs(model), graphs(whole), strict=True):
            for a, b in zip(one, two, strict=True):
                for left, right in zip(a.outputs, b.outputs, strict=True):
                    assert left.shape == right.shape, (left.name, left.shape, right.shape)
                    compared.append(left.name)

    infer = shapes.infer
    monkeypatch.setattr(shapes, "infer", both)
    assert fuse(stack(3)).summary.fused == 3
    assert len(compared) > 300


def test_what_inference_noted_for_itself_is_not_in_the_result() -> None:
    result = fuse(stack(1))
    assert result.summary.fused == 1
    held = [v.metadata_props for n in result.model.graph for v in n.outputs]
    assert not any(held)
    assert not result.model.meta


def test_the_collector_leaves_the_models_alone_while_they_are_verified() -> None:
    before = gc.get_freeze_count()
    with prepare.collector_sees_new():
        assert gc.get_freeze_count() > 10_000
        with prepare.collector_sees_new():  # somebody else has frozen objects: they stay so
            pass
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == before == 0
    assert fuse(stack(1)).summary.fused == 1
    assert gc.get_freeze_count() == 0


def test_the_collector_runs_again_after_fusing() -> None:
    assert gc.isenabled()
    with pytest.raises(RuntimeError), prepare.collector_paused():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()
