"""A file's own yardstick: each step's result moved by up to a unit in its last place, whatever the inputs are."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.ort_runner import OrtRunner
from export.precision import yardstick

GRAPH = """
<ir_version: 10, opset_import: ["": 18]>
g (int64[B,S] ids, int64[B,S] keep, {kind}[6,4] table, {kind}[4,4] w) => ({kind}[B,S,4] out)
<float low = {{-3.4e38}}> {{
  x = Gather(table, ids)
  y = MatMul(x, w)
  kept = Cast<to = 1>(keep)
  one = Constant<value_float = 1.0>()
  hidden = Sub(one, kept)
  bias = Mul(hidden, low)
  axes = Constant<value_ints = [2]>()
  column = Unsqueeze(bias, axes)
  narrow = Cast<to = {to}>(column)
  safe = Max(narrow, narrow)
  z = Add(y, safe)
  out = Softmax<axis = -1>(z)
}}
"""
KINDS = {"float": (1, np.float32), "float16": (10, np.float16)}


def opened(kind: str, *, shaken: bool) -> OrtRunner:
    to, dtype = KINDS[kind]
    model = ir.from_onnx_text(GRAPH.format(kind=kind, to=to))
    noise = np.random.default_rng(0)
    for value in [value for value in model.graph.inputs if value.name in ("table", "w")]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(noise.normal(size=value.shape.numpy()).astype(dtype), name=value.name)
        model.graph.register_initializer(value)
    made = yardstick.shaken(model) if shaken else model
    return OrtRunner(ir.to_proto(made).SerializeToString(), optimization="disable")


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_moves_and_at_one_none_does(kind: str) -> None:
    feeds = {"ids": np.arange(6).reshape(2, 3), "keep": np.asarray([[1, 1, 1], [1, 1, 0]])}
    plain = opened(kind, shaken=False).run(feeds)["out"]
    own, *moved = (run(feeds)["out"] for run in yardstick.grids(opened(kind, shaken=True).run, 4))
    if kind == "float":
        np.testing.assert_array_equal(own, plain)
    # Softmax's inputs move by a unit of their own, which exp turns into |score| units of the result, and so do two more
    # steps after them: no number moves by more than a few units of 1.
    unit = float(np.finfo(KINDS[kind][1]).eps)
    for run in (*moved, own) if kind == "float16" else moved:
        assert 0.0 < float(np.abs(run[0].astype(float) - plain[0].astype(float)).max()) < 16 * unit
    # -3.4e38 times anything over 1 is -inf: a number that large stays as it is, and its row with it
    assert all(np.isfinite(run[:, :2]).all() for run in moved)
    assert all(np.array_equal(np.isnan(run), np.isnan(plain)) for run in moved)
