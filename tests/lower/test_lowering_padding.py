"""A mask that hides the keys from a length on becomes that length where the target counts keys; others stay."""

from collections.abc import Callable

import lowering_oracle
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from export.graph.shapes import infer
from export.lower import lower

INPUTS = "float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,8] v, int64[B] n, bool[B,1,1,T] given, int32[B,1] n32"
POSITIONS = """
  zero = Constant<value = int64 {0}>()
  one = Constant<value = int64 {1}>()
  three = Constant<value = int64 {3}>()
  treble = Constant<value = int64[1] {3}>()
  vector = Constant<value = int64[1] {1}>()
  middle = Constant<value = int64[2] {1, 2}>()
  last = Shape<start = 2, end = 3>(k)
  count = Squeeze(last)
  place = Range(zero, count, one)
  column = Unsqueeze(n, vector)
"""
PROVED = {
    "less": "short = Less(place, column)\n m = Unsqueeze(short, middle)",
    "greater": "short = Greater(column, place)\n m = Unsqueeze(short, middle)",
    "padded ones": "pad = GreaterOrEqual(place, column)\n keep = Not(pad)\n m = Unsqueeze(keep, middle)",
    "other side": "pad = LessOrEqual(column, place)\n wide = Unsqueeze(pad, middle)\n m = Not(wide)",
    "int32": "p32 = Cast<to = 6>(place)\n short = Less(p32, n32)\n m = Unsqueeze(short, middle)",
}
Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]
KEPT: dict[str, tuple[str, Mask]] = {
    "a tensor": ("m = Identity(given)", lambda place, n: GIVEN[:, 0, 0]),
    "other positions": (
        "far = Add(place, one)\n short = Less(far, column)\n m = Unsqueeze(short, middle)",
        lambda place, n: place + 1 < n,
    ),
    "from the left": (
        "short = GreaterOrEqual(place, column)\n m = Unsqueeze(short, middle)",
        lambda place, n: place >= n,
    ),
    "steps of three": (
        "end = Mul(last, treble)\n stop = Squeeze(end)\n far = Range(zero, stop, three)\n short = Less(far, column)\n"
        "m = Unsqueeze(short, middle)",
        lambda place, n: 3 * place < n,
    ),
    "one past the length": (
        "short = LessOrEqual(place, column)\n m = Unsqueeze(short, middle)",
        lambda place, n: place <= n,
    ),
}
GIVEN = np.random.default_rng(1).random((3, 1, 1, 5)) > 0.3


def model(mask: str, attributes: str = "") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["": 23]>
      g ({INPUTS}) => (float[B,4,S,8] y) {{ {POSITIONS} {mask}
        y = Attention<scale = 0.3{attributes}>(q, k, v, m) }}"""
    made = ir.from_proto(onnx.parser.parse_model(text))
    infer(made)
    return made


def node(lowered: ir.Model) -> ir.Node:
    return next(n for n in lowered.graph if n.op_type == "Attention")


def same(after: ir.Model, mask: Mask, causal: int = 0) -> None:
    proto = ir.to_proto(after)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for lengths in ([5, 2, 1], [0, 5, 3], [9, -4, 4]):  # none, all, and beyond both ends
        n = np.asarray(lengths)
        q, k, v = (rng.standard_normal((3, 4, rows, 8), np.float32) for rows in (5 if causal else 3, 5, 5))
        feeds = {"q": q, "k": k, "v": v, "n": n, "n32": n.astype(np.int32)[:, None], "given": GIVEN}
        taken = {i.name: feeds[i.name] for i in session.get_inputs()}
        keep = mask(np.arange(5), n[:, None])[:, None, None, :]
        want = lowering_oracle.attention(q, k, v, keep, scale=0.3, is_causal=causal)[0]
        np.testing.assert_allclose(session.run(None, taken)[0], want, rtol=2e-5, atol=2e-5, err_msg=str(lengths))


def shorter(place: np.ndarray, n: np.ndarray) -> np.ndarray:
    return place < n


@pytest.mark.parametrize("spelling", PROVED)
def test_a_mask_that_is_a_length_becomes_one(spelling: str) -> None:
    lowered = lower(model(PROVED[spelling]), "ort")
    assert "count keys" in [step.action for step in lowered.steps]
    assert node(lowered.model).inputs[3] is None and node(lowered.model).inputs[6] is not None
    assert lowered.model.opset_imports[""] == 24
    assert not {"Less", "Greater", "Range", "Expand"} & {n.op_type for n in lowered.model.graph}
    same(lowered.model, shorter)
    assert not lower(lowered.model, "ort").steps


@pytest.mark.parametrize("spelling", KEPT)
def test_other_masks_stay(spelling: str) -> None:
    text, mask = KEPT[spelling]
    lowered = lower(model(text), "ort")
    assert "count keys" not in [step.action for step in lowered.steps]
    same(lowered.model, mask)


def test_a_causal_attention_keeps_its_mask() -> None:
    """Beside valid lengths the operator counts queries from the last valid key, not from the first key."""
    lowered = lower(model(PROVED["less"], ", is_causal = 1"), "ort")
    assert "count keys" not in [step.action for step in lowered.steps]
    same(lowered.model, shorter, causal=1)


def test_other_targets_get_the_mask() -> None:
    assert "count keys" not in [step.action for step in lower(model(PROVED["less"]), "tensorrt-rtx").steps]
