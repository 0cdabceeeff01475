"""More rows: rotary embeddings, and nodes that a parser may take for something else."""

import lowering_graphs as g
import onnx_ir as ir
from target_feature import text

_HEAD = '<ir_version: 11, opset_import: ["" : 25]> g'

# Rotary embedding.
for name, attributes, x, operands, more in (
    ("4-D, position_ids", "", "float16[B,4,S,16]", ", p", "float16[N,8] c, float16[N,8] s, int64[B,S] p"),
    ("4-D, tables by batch", "", "float16[B,4,S,16]", "", "float16[B,S,8] c, float16[B,S,8] s"),
    ("tables of batch 1", "", "float16[B,4,S,16]", "", "float16[1,S,8] c, float16[1,S,8] s"),
    ("positions of batch 1", "", "float16[B,4,S,16]", ", p", "float16[N,8] c, float16[N,8] s, int64[1,S] p"),
    ("interleaved", "<interleaved: int = 1>", "float16[B,4,S,16]", ", p",
     "float16[N,8] c, float16[N,8] s, int64[B,S] p"),
    ("partial", "<rotary_embedding_dim: int = 8>", "float16[B,4,S,16]", ", p",
     "float16[N,4] c, float16[N,4] s, int64[B,S] p"),
    ("partial, interleaved", "<rotary_embedding_dim: int = 8, interleaved: int = 1>", "float16[B,4,S,16]", "",
     "float16[B,S,4] c, float16[B,S,4] s"),
    ("3-D", "<num_heads: int = 4>", "float16[B,S,64]", ", p", "float16[N,8] c, float16[N,8] s, int64[B,S] p"),
    ("3-D, partial, tables by batch", "<num_heads: int = 4, rotary_embedding_dim: int = 8>", "float16[B,S,64]", "",
     "float16[B,S,4] c, float16[B,S,4] s"),
    ("fp32 tables beside fp16 x", "", "float16[B,4,S,16]", "", "float[B,S,8] c, float[B,S,8] s"),
    ("bf16", "", "bfloat16[B,4,S,16]", "", "bfloat16[B,S,8] c, bfloat16[B,S,8] s"),
    ("fp32", "", "float[B,4,S,16]", "", "float[B,S,8] c, float[B,S,8] s"),
):  # fmt: skip
    body = f"{{ [turn] y = RotaryEmbedding {attributes} (x, c, s{operands}) }}"
    text("RotaryEmbedding", f"RotaryEmbedding, {name}", f"{_HEAD} ({x} x, {more}) => ({x} y) {body}")
_TURNED = """{head} (float16[B,4,S,64] q, float16[B,4,S,64] k, float16[B,4,S,64] v, {tables} c, {tables} s) =>
  (float16[B,4,S,64] y) {{ [turn_q] a = RotaryEmbedding (q, c, s) [turn_k] b = RotaryEmbedding (k, c, s)
  [attn] y = Attention <is_causal: int = 1{more}> (a, b, v) }}"""
text("RotaryEmbedding", "RotaryEmbedding on Q and K of a causal attention",
      _TURNED.format(head=_HEAD, tables="float16[1,S,32]", more=""))  # fmt: skip
text("RotaryEmbedding", "RotaryEmbedding on Q and K, softcap",
      _TURNED.format(head=_HEAD, tables="float16[1,S,32]", more=", softcap: float = 1.5"))  # fmt: skip

# What a parser may take for something else.
_QKV = "float16[B,S,64] q, float16[B,S,64] k, float16[B,S,64] v"
_THREE = "y = Attention <q_num_heads: int = 4, kv_num_heads: int = 4{}> (q, k, v{})"
_FOREIGN = '<ir_version: 11, opset_import: ["" : 23, "acme" : 1, "com.microsoft" : 1, "attnproof" : 1]> g'


def _foreign(name: str, body: str, inputs: str = _QKV, functions: str = "", truth: str = "") -> None:
    called = f"{_FOREIGN} ({inputs}) => (float16[B,S,64] y) {{ {body} }}"
    plain = f"{_FOREIGN} ({inputs}) => (float16[B,S,64] y) {{ {truth} }}" if truth else ""
    text("foreign operators", name, f"{called} {functions}", plain)


_foreign("function named Attention", "[f] y = acme.Attention (q, k, v)", truth="a = Sub (q, k) y = Add (a, v)",
         functions='<domain: "acme", opset_import: ["" : 23]> Attention (q, k, v) => (y) '
         "{ a = Sub (q, k) y = Add (a, v) }")  # fmt: skip
_foreign("function named Relu", "[f] y = acme.Relu (q)", truth="y = Neg (q)", inputs="float16[B,S,64] q",
         functions='<domain: "acme", opset_import: ["" : 23]> Relu (q) => (y) { y = Neg (q) }')  # fmt: skip
_foreign("function around an Attention", "[f] y = acme.Block (q, k, v)", truth=_THREE.format("", ""),
         functions='<domain: "acme", opset_import: ["" : 23]> Block (q, k, v) => (y) '
         f'{{ {_THREE.format("", "")} }}')  # fmt: skip
_foreign("custom operator", "[mine] y = acme.Swish9 (q)", inputs="float16[B,S,64] q")
_foreign("custom operator named Relu", "[mine] y = acme.Relu (q)", inputs="float16[B,S,64] q")
_foreign("com.microsoft Gelu", "[mine] y = com.microsoft.Gelu (q)", "float16[B,S,64] q", truth="y = Gelu (q)")
_foreign("com.microsoft MultiHeadAttention",
         "[attn] y = com.microsoft.MultiHeadAttention <num_heads: int = 4> (q, k, v)",
         truth=_THREE.format("", ""))  # fmt: skip
_foreign("com.microsoft MultiHeadAttention, unidirectional",
         "[attn] y = com.microsoft.MultiHeadAttention <num_heads: int = 4, unidirectional: int = 1> (q, k, v)",
         truth=_THREE.format(", is_causal: int = 1", ""))  # fmt: skip
_foreign("com.microsoft MultiHeadAttention, attention bias",
         "[attn] y = com.microsoft.MultiHeadAttention <num_heads: int = 4> (q, k, v, , , m)",
         inputs=f"{_QKV}, float16[B,4,S,S] m")  # fmt: skip
_foreign("com.microsoft MultiHeadAttention, padding mask",
         "[attn] y = com.microsoft.MultiHeadAttention <num_heads: int = 4> (q, k, v, , n)",
         inputs=f"{_QKV}, int32[B,S] n")  # fmt: skip
_foreign("com.microsoft GroupQueryAttention",
         "[attn] y = com.microsoft.GroupQueryAttention <num_heads: int = 4, kv_num_heads: int = 4> (q, k, v, , , n, t)",
         inputs=f"{_QKV}, int32[B] n, int32 t")  # fmt: skip
_foreign("com.microsoft SkipLayerNormalization", "[mine] y = com.microsoft.SkipLayerNormalization (q, k, g)",
         inputs="float16[B,S,64] q, float16[B,S,64] k, float16[64] g")  # fmt: skip
text("foreign operators", "plugin node", f"""{_FOREIGN} (float16[B,4,S,16] q, float16[B,4,T,16] k, float16[B,4,T,16] v,
  float[1,1] c, float16[1,1,1,1] z, int32[1] n) => (float16[B,4,S,16] y) {{ [attn] y = attnproof.RotaryAttention
  <scale = 0.25, softcap = 0.0, causal_kind = 0, window = 0, rotary_embedding_dim = 0, interleaved = 0, rotate_key = 0,
  has_bias = 0, has_lengths = 0, plugin_namespace = "attnproof", plugin_version = "1", aot = 1> (q, k, v, c, c, z, n)
  }}""", ir.to_onnx_text(g.attention(dtype="float16")))  # fmt: skip
text(
    "foreign operators",
    "attention in a branch of If",
    """<ir_version: 11, opset_import: ["" : 23]> g
  (float16[B,4,S,16] q, float16[B,4,S,16] k, bool w) => (float16[B,4,S,16] y) { y = If (w) <
  then_branch = a () => (s) { [attn] s = Attention <is_causal: int = 1> (q, k, k) },
  else_branch = b () => (t) { t = Neg (q) }> }""",
)
