"""The attentions of the shape sets as ONNX graphs written by hand: the best forms, and ONNX Runtime's own operators.

They take the inputs of the exported graphs and no others: what a form needs besides (a mask in float, lengths,
positions) it computes from them, so that its price is in its time.
"""

import re
from typing import Any

import numpy as np
import onnx_ir as ir

from export.bench.cases import LONGEST
from export.bench.shapes import Shape

NARROW = "Attention-24, lengths of the mask"
"""Right only where the padding is at the end, which an exported mask does not promise."""


def forms(shape: Shape) -> dict[str, bytes]:
    """Returns {what it is called: serialised model} for a shape's family; the sizes of batch and length are free."""
    made = {
        "padded": {
            NARROW: (24, _LENGTHS_OF_MASK),
            "Attention-23 3-D, float mask": (23, _FLOAT_MASK),
            "Attention-23 3-D, bool mask": (23, _BOOL_MASK),
            "Attention-23 4-D, float mask": (23, _FOUR_AXES),
            "com.microsoft MultiHeadAttention": (23, _MULTI_HEAD),
        },
        "lengths": {
            "Attention-24, lengths": (24, _LENGTHS),
            "Attention-23 3-D, bool mask of lengths": (23, _MASK_OF_LENGTHS),
        },
        "causal": {
            "RotaryEmbedding-23 3-D + Attention-23 3-D": (23, _ROTARY),
            "com.microsoft GroupQueryAttention": (23, _GROUP_QUERY),
        },
    }[shape.family]
    return {name: _model(shape, opset, text) for name, (opset, text) in made.items()}


def best(shape: Shape) -> tuple[str, ...]:
    """Returns the forms that what this project produces is measured against: those of the standard operator."""
    return tuple(name for name in forms(shape) if not name.startswith("com.microsoft") and name != NARROW)


_HEADS = "q_num_heads = {h}, kv_num_heads = {g}, scale = {scale}"
_QUERY_AXIS = "length = Shape<start = 1, end = 2>(query)\n target = Concat<axis = 0>(one, length, one)\n"
_ADDED = """
  kept = Cast<to = 1>(attention_mask)
  hidden = Sub(unit, kept)
  low = Mul(hidden, lowest)
  four = Unsqueeze(low, middle)
  """
_LENGTHS = f"out = Attention<{_HEADS}>(query, key, value, , , , lengths)"
_MASK_OF_LENGTHS = f"""
  keys = Shape<start = 1, end = 2>(key)
  count = Squeeze(keys)
  place = Range(zero, count, step)
  column = Unsqueeze(lengths, one)
  kept = Less(place, column)
  four = Unsqueeze(kept, middle)
  {_QUERY_AXIS}
  mask = Expand(four, target)
  out = Attention<{_HEADS}>(query, key, value, mask)
"""
_LENGTHS_OF_MASK = f"""
  lengths = ReduceSum<keepdims = 0>(attention_mask, one)
  out = Attention<{_HEADS}>(query, key, value, , , , lengths)
"""
_FLOAT_MASK = f"{_ADDED}{_QUERY_AXIS} mask = Expand(four, target)\n out = Attention<{_HEADS}>(query, key, value, mask)"
_BOOL_MASK = f"""
  kept = Cast<to = 9>(attention_mask)
  four = Unsqueeze(kept, middle)
  {_QUERY_AXIS}
  mask = Expand(four, target)
  out = Attention<{_HEADS}>(query, key, value, mask)
"""
_FOUR_AXES = f"""{_ADDED}{_QUERY_AXIS}
  mask = Expand(four, target)
  qs = Reshape(query, heads)
  ks = Reshape(key, heads)
  vs = Reshape(value, heads)
  q = Transpose<perm = [0, 2, 1, 3]>(qs)
  k = Transpose<perm = [0, 2, 1, 3]>(ks)
  v = Transpose<perm = [0, 2, 1, 3]>(vs)
  y = Attention<scale = {{scale}}>(q, k, v, mask)
  t = Transpose<perm = [0, 2, 1, 3]>(y)
  out = Reshape(t, merged)
"""
_MULTI_HEAD = """
  kept = Cast<to = 6>(attention_mask)
  out = com.microsoft.MultiHeadAttention<num_heads = {h}, scale = {scale}>(query, key, value, , kept)
"""
_ROTARY = f"""
  sizes = Shape<start = 0, end = 2>(query)
  length = Gather(sizes, second)
  place = Range(zero, length, step)
  places = Expand(place, sizes)
  q = RotaryEmbedding<num_heads = {{h}}>(query, cos, sin, places)
  k = RotaryEmbedding<num_heads = {{g}}>(key, cos, sin, places)
  out = Attention<is_causal = 1, {_HEADS}>(q, k, value)
"""
_GROUP_QUERY = """
  batch = Shape<start = 0, end = 1>(query)
  length = Shape<start = 1, end = 2>(query)
  narrow = Cast<to = 6>(length)
  total = Squeeze(narrow)
  last = Sub(narrow, one32)
  lasts = Expand(last, batch)
  out, past_key, past_value = com.microsoft.GroupQueryAttention<do_rotary = 1, num_heads = {h}, kv_num_heads = {g},
    scale = {scale}>(query, key, value, , , lasts, total, cos, sin)
"""


def _model(shape: Shape, opset: int, text: str) -> bytes:
    body = text.format(h=shape.heads, g=shape.kv_heads, scale=float(shape.size**-0.5))
    wide, narrow = shape.heads * shape.size, shape.kv_heads * shape.size
    inputs = f"float[B,S,{wide}] query, float[B,S,{narrow}] key, float[B,S,{narrow}] value"
    if shape.family == "padded":
        inputs += ", int64[B,S] attention_mask"
    if shape.family == "lengths":
        inputs += ", int64[B] lengths"
    values = {name: ir.tensor(data, name=name) for name, data in _constants(shape).items() if _reads(body, name)}
    for name, tensor in values.items():
        inputs += f", {_KINDS[tensor.dtype]}[{','.join(map(str, tensor.shape))}] {name}"
    head = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = ir.from_onnx_text(f"{head}\ng ({inputs}) => (float[B,S,{wide}] out) {{ {body} }}")
    for value in [v for v in model.graph.inputs if v.name in values]:
        model.graph.inputs.remove(value)
        value.const_value = values[str(value.name)]
        model.graph.register_initializer(value)
    return bytes(ir.to_proto(model).SerializeToString())


_KINDS = {ir.DataType.FLOAT: "float", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}


def _reads(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b(?! =)", text) is not None


def _constants(shape: Shape) -> dict[str, Any]:
    """Returns the values of the names that the graphs read and nothing in them makes."""
    places = np.arange(LONGEST)[:, None] * 10000.0 ** (-np.arange(0, shape.size, 2) / shape.size)
    return {
        "zero": np.asarray(0),
        "step": np.asarray(1),
        "second": np.asarray(1),
        "one": np.asarray([1]),
        "one32": np.asarray([1], np.int32),
        "middle": np.asarray([1, 2]),
        "heads": np.asarray([0, 0, shape.heads, shape.size]),
        "merged": np.asarray([0, 0, shape.heads * shape.size]),
        "unit": np.asarray(1.0, np.float32),
        "lowest": np.asarray(np.finfo(np.float32).min),
        "cos": np.cos(places).astype(np.float32),
        "sin": np.sin(places).astype(np.float32),
    }
