"""The plugin operator as an ONNX function, so that ONNX Runtime runs the same file without the plugin.

One body serves every node: attributes are read as constants, so what they switch off costs a few scalars. The products,
the softmax and the rotation are float32, as in the kernel; a row that sees no key gives 0.
"""

import functools
from typing import Any

from plugins.contract import ROTARY_ATTENTION

_BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <{attributes}> (q, k, v, cos, sin, bias, lengths) => (out)
{{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  nothing = Constant <value_float = 0.0> ()
  hidden = Constant <value_floats = [-inf]> ()
  last = Constant <value_ints = [-1]> ()
  a0 = Constant <value_ints = [0]> ()
  a1 = Constant <value_ints = [1]> ()
  to_row = Constant <value_ints = [1, -1]> ()
  to_batch = Constant <value_ints = [-1, 1, 1, 1]> ()
  two = Constant <value_int = 2> ()

  batch = Shape <start = 0, end = 1> (q)
  heads = Shape <start = 1, end = 2> (q)
  queries_1 = Shape <start = 2, end = 3> (q)
  queries = Squeeze (queries_1)
  groups = Shape <start = 1, end = 2> (k)
  keys_1 = Shape <start = 2, end = 3> (k)
  keys = Squeeze (keys_1)

  has_lengths = Constant <value_int : int = @has_lengths> ()
  use_lengths = Cast <to = 9> (has_lengths)
  given = Cast <to = 7> (lengths)
  not_negative = Max (given, zero)
  not_beyond = Min (not_negative, keys)
  visible_flat = Where (use_lengths, not_beyond, keys)
  visible = Reshape (visible_flat, last)

  causal_kind = Constant <value_int : int = @causal_kind> ()
  lower_right = Equal (causal_kind, two)
  beyond = Sub (visible, queries)
  shift = Where (lower_right, beyond, zero)
  shift_column = Unsqueeze (shift, a1)
  counted = Range (zero, queries, one)
  rows = Reshape (counted, to_row)
  at = Add (rows, shift_column)
  cells = Range (zero, keys, one)

  rotary = Constant <value_int : int = @rotary_embedding_dim> ()
  rotates = Greater (rotary, zero)
  rotate_key = Constant <value_int : int = @rotate_key> ()
  rotates_key = Cast <to = 9> (rotate_key)
  positions = Shape <start = 0, end = 1> (cos)
  furthest = Sub (positions, one)
  first = Max (at, zero)
  clamped = Min (first, furthest)
  by_query_shape = Concat <axis = 0> (batch, queries_1)
  by_query = Expand (clamped, by_query_shape)
  cells_clamped = Min (cells, furthest)
  by_key_shape = Concat <axis = 0> (batch, keys_1)
  by_key = Expand (cells_clamped, by_key_shape)
  q32 = Cast <to = 1> (q)
  k32 = Cast <to = 1> (k)
  v32 = Cast <to = 1> (v)
  query_turned = If (rotates) <
    then_branch = turn_q () => (turned) {{
      wide = RotaryEmbedding <interleaved : int = @interleaved, rotary_embedding_dim : int = @rotary_embedding_dim>
        (q32, cos, sin, by_query)
      narrow = CastLike (wide, q)
      turned = Cast <to = 1> (narrow)
    }},
    else_branch = leave_q () => (left) {{ left = Identity (q32) }}
  >
  key_turned = If (rotates_key) <
    then_branch = turn_k () => (turned) {{
      wide = RotaryEmbedding <interleaved : int = @interleaved, rotary_embedding_dim : int = @rotary_embedding_dim>
        (k32, cos, sin, by_key)
      narrow = CastLike (wide, k)
      turned = Cast <to = 1> (narrow)
    }},
    else_branch = leave_k () => (left) {{ left = Identity (k32) }}
  >

  size = Shape <start = 3, end = 4> (q)
  share = Div (heads, groups)
  grouped_shape = Concat <axis = 0> (batch, groups, share, queries_1, size)
  grouped = Reshape (query_turned, grouped_shape)
  key_t = Transpose <perm = [0, 1, 3, 2]> (key_turned)
  a2 = Constant <value_ints = [2]> ()
  key_shared = Unsqueeze (key_t, a2)
  product = MatMul (grouped, key_shared)
  scores_shape = Concat <axis = 0> (batch, heads, queries_1, keys_1)
  raw = Reshape (product, scores_shape)
  scale = Constant <value_float : float = @scale> ()
  scaled = Mul (raw, scale)
  softcap = Constant <value_float : float = @softcap> ()
  caps = Greater (softcap, nothing)
  one_float = Constant <value_float = 1.0> ()
  cap = Where (caps, softcap, one_float)
  small = Div (scaled, cap)
  bent = Tanh (small)
  capped_wide = Mul (bent, cap)
  capped = Where (caps, capped_wide, scaled)
  has_bias = Constant <value_int : int = @has_bias> ()
  use_bias = Cast <to = 9> (has_bias)
  bias32 = Cast <to = 1> (bias)
  added = Where (use_bias, bias32, nothing)
  biased = Add (capped, added)

  visible_4d = Reshape (visible, to_batch)
  there = Less (cells, visible_4d)
  is_causal = Greater (causal_kind, zero)
  at_heads = Unsqueeze (at, a1)
  a3 = Constant <value_ints = [3]> ()
  at_4d = Unsqueeze (at_heads, a3)
  ahead = Greater (cells, at_4d)
  forbidden = And (is_causal, ahead)
  window = Constant <value_int : int = @window> ()
  has_window = Greater (window, zero)
  distance = Sub (at_4d, cells)
  outside = GreaterOrEqual (distance, window)
  far = And (has_window, outside)
  hides = Or (forbidden, far)
  seen = Not (hides)
  keep = And (there, seen)
  masked = Where (keep, biased, hidden)
  weights = Softmax <axis = -1> (masked)
  gone = Equal (masked, hidden)
  clean = Where (gone, nothing, weights)
  by_group_shape = Concat <axis = 0> (batch, groups, share, queries_1, keys_1)
  by_group = Reshape (clean, by_group_shape)
  value_shared = Unsqueeze (v32, a2)
  mixed = MatMul (by_group, value_shared)
  value_size = Shape <start = 3, end = 4> (v)
  out_shape = Concat <axis = 0> (batch, heads, queries_1, value_size)
  wide_out = Reshape (mixed, out_shape)
  out = CastLike (wide_out, q)
}}
"""


@functools.cache
def onnx_function(opset: int = 23) -> Any:
    """Returns the operator's `onnx.FunctionProto` for a model of that opset (23 or later, for RotaryEmbedding)."""
    import onnx.parser

    attributes = ", ".join(attribute.name for attribute in ROTARY_ATTENTION.attributes)
    text = _BODY.format(domain=ROTARY_ATTENTION.domain, name=ROTARY_ATTENTION.name, attributes=attributes, opset=opset)
    return onnx.parser.parse_function(text)
