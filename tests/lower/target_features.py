"""The rows of the targets' table: everything that ai.onnx::Attention 23 to 25 can say, one small graph each.

Half precision unless a row is about the type, because only halves have fused kernels.
"""

import lowering_graphs as g
import onnx_ir as ir
from target_feature import FEATURES, add, text

from export.lower.lengths import POSITIVE

CAUSAL = "is_causal: int = 1"
LEFT, BOTH = "left_window_size: int = 2", "left_window_size: int = 2, right_window_size: int = 1"
CAP = "softcap: float = 1.5"


def _attention(group: str, name: str, mask: str = "", attributes: str = "", **sizes: object) -> None:
    half = {"dtype": "float16", **sizes}
    add(group, name, lambda: g.attention(mask, attributes, **half))  # type: ignore[arg-type]


def _node(
    group: str,
    name: str,
    attributes: str = "",
    *,
    size: int = 16,
    heads: int = 4,
    kv_heads: int = 4,
    queries: str = "S",
    keys: str = "T",
    more: str = "",
    operands: str = "",
    outputs: str = "y",
    shows: str = "",
    opset: int = 25,
    before: str = "",
    value: str = "float16",
) -> None:
    """Adds an Attention whose inputs after V and outputs after the first are written out."""
    inputs = f"float16[B,{heads},{queries},{size}] q, float16[B,{kv_heads},{keys},{size}] k, {value}[B,{kv_heads},"
    inputs += f"{keys},{size}] v{more}"
    body = f"{before} [attn] {outputs} = Attention <scale: float = 0.25{attributes}> (q, k, v{operands})"
    shown = f"float16[B,{heads},{queries},{size}] y{shows}"
    add(group, name, lambda: g.model(inputs, body, shown, opset))


# Types.
for word, dtype in (("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float"), ("fp64", "double")):
    _attention("types", word, dtype=dtype)
    _attention("types", f"{word}, bool mask", "bool[B,1,S,T]", dtype=dtype)
    _attention("types", f"{word}, causal, float mask", f"{dtype}[B,1,S,T]", CAUSAL, dtype=dtype)
_node("types", "V in fp32 beside Q in fp16", value="float")

# Scale: where it is placed is the target's matter, what it is the graph's.
for word, said in (("default", ""), ("negative", "scale: float = -0.25"), ("zero", "scale: float = 0.0")):
    attributes = f"<{said}>" if said else ""
    add("scale", f"scale {word}", lambda a=attributes: g.model(  # type: ignore[misc]
        "float16[B,4,S,16] q, float16[B,4,T,16] k, float16[B,4,T,16] v", f"[attn] y = Attention {a} (q, k, v)",
        "float16[B,4,S,16] y"))  # fmt: skip

# Heads, lengths and sizes.
_attention("heads", "grouped queries (4 to 2)", kv_heads=2)
_attention("heads", "grouped queries (4 to 2), bool mask", "bool[B,1,S,T]", kv_heads=2)
_attention("heads", "multi-query (4 to 1)", kv_heads=1)
_attention("heads", "one head", heads=1, kv_heads=1)
_attention("heads", "one head, bool mask", "bool[B,1,1,T]", heads=1, kv_heads=1)
_attention("heads", "one head, causal, float mask", "float16[1,1,S,T]", CAUSAL, heads=1, kv_heads=1)
_attention("one query", "one query", queries="1")
_attention("one query", "one query, bool mask", "bool[B,1,1,T]", queries="1")
_attention("one query", "one query, two heads", heads=2, kv_heads=2, queries="1")
_attention("one query", "one query, head size 20", size=20, queries="1")
_attention("one query", "one query, causal", "", CAUSAL, queries="1")
for size in (1, 8, 9, 16, 17, 24, 40, 63, 64, 72, 80, 100, 128, 192, 256, 257, 264, 512):
    _attention("head size", f"head size {size}", size=size)
_attention("head size", "head size 8, causal, bool mask", "bool[B,1,1,T]", CAUSAL, size=8)
_attention("V's head size", "V 8 beside Q 16", value_size=8)
_attention("V's head size", "V 128 beside Q 64, bool mask", "bool[B,1,S,T]", size=64, value_size=128)
_attention("V's head size", "V 24 beside Q 16, grouped", value_size=24, kv_heads=2)
_attention("V's head size", "V 512 beside Q 64", size=64, value_size=512)

# The three-axis form.
for name, mask, attributes, value in (
    ("3-D form", "", "", 32),
    ("3-D form, grouped, causal, bool mask", "bool[B,4,S,T]", CAUSAL, 32),
    ("3-D form, V's head size 8", "", "", 16),
    ("3-D form, softcap, float mask", "float16[B,1,S,T]", CAP, 32),
):
    inputs = f"float16[B,S,64] q, float16[B,T,32] k, float16[B,T,{value}] v" + (f", {mask} m" if mask else "")
    extra = f", {attributes}" if attributes else ""
    body = f"[attn] y = Attention <scale: float = 0.25, q_num_heads: int = 4, kv_num_heads: int = 2{extra}> "
    body += f"(q, k, v{', m' if mask else ''})"
    add("3-D form", name, lambda i=inputs, b=body, v=value: g.model(i, b, f"float16[B,S,{2 * v}] y"))  # type: ignore[misc]

# Masks: every broadcast, and rows without keys (the feeds hide whole rows by False, -inf and the lowest number).
SHAPES = (
    "[S,T]", "[1,T]", "[T]", "[4,S,T]", "[1,S,T]", "[4,1,T]", "[B,1,S,T]", "[B,1,1,T]", "[B,4,S,T]", "[B,4,1,T]",
    "[1,1,S,T]", "[1,4,S,T]", "[1,1,1,T]", "[B,S,T]", "[B,1,S,1]",
)  # fmt: skip
"""[B,S,T] is valid only where B is the number of heads, as it is in `sizes`."""
for shape in SHAPES:
    _attention("bool mask", f"bool mask {shape}", f"bool{shape}")
    _attention("float mask", f"float mask {shape}", f"float16{shape}")
_attention("float mask", "fp32 mask beside fp16 Q", "float[B,1,S,T]")
_attention("float mask", "fp16 mask beside fp32 Q", "float16[B,1,S,T]", dtype="float")
_attention("float mask", "int64 mask", "int64[B,1,S,T]")
_node("float mask", "mask shorter than K", keys="7", queries="5", more=", float16[2,1,5,4] m".replace("2,", "B,"),
      operands=", m")  # fmt: skip
for word, number in (("-inf", "-inf"), ("finfo.min", "-65504.0"), ("-10000", "-10000.0")):
    before = f"zero = Constant <value_float = 0.0> () low = Constant <value_float = {number}> () "
    before += "wide = Where (m, zero, low) bias = Cast <to: int = 10> (wide)"
    _node("rows without keys", f"mask of 0 and {word}", more=", bool[B,1,S,T] m", operands=", bias", before=before)
    _node("rows without keys", f"mask of 0 and {word}, causal", f", {CAUSAL}", more=", bool[B,1,1,T] m",
          operands=", bias", before=before)  # fmt: skip
_attention("rows without keys", "fp32, float mask", "float[B,1,S,T]", dtype="float")

# Causal, window, softcap, precision.
_attention("causal", "causal, as many queries as keys", "", CAUSAL, keys="S")
_attention("causal", "causal, other lengths", "", CAUSAL)
_attention("causal", "causal, grouped", "", CAUSAL, kv_heads=2)
for kind in ("bool", "float16"):
    for shape in ("[B,1,1,T]", "[B,1,S,T]", "[S,T]"):
        _attention("causal and mask", f"causal, {kind.replace('16', '')} mask {shape}", f"{kind}{shape}", CAUSAL)
_attention("window", "window to the left, causal", "", f"{LEFT}, {CAUSAL}", keys="S")
_attention("window", "window to both sides", "", BOTH)
_attention("window", "window to both sides, bool mask", "bool[B,1,1,T]", BOTH)
_attention("window", "window to both sides, float mask, grouped", "float16[B,1,S,T]", BOTH, kv_heads=2)
_attention("softcap", "softcap", "", CAP)
_attention("softcap", "softcap, causal, bool mask, grouped", "bool[B,1,S,T]", f"{CAP}, {CAUSAL}", kv_heads=2)
_attention("softcap", "softcap, float mask", "float16[B,4,S,T]", CAP)
_attention("softcap", "softcap, window, causal", "", f"{CAP}, {LEFT}, {CAUSAL}", keys="S")
_attention("softcap", "softcap, head size 8", "", CAP, size=8)
_attention("softcap", "softcap, V 24 beside Q 16", "", CAP, value_size=24)
for word, number in (("fp32", 1), ("fp16", 10), ("bf16", 16), ("fp64", 11)):
    _attention("softmax_precision", f"softmax_precision {word}", "", f"softmax_precision: int = {number}")
_attention("softmax_precision", "softmax_precision fp16 in fp32", "", "softmax_precision: int = 10", dtype="float")
for opset in (23, 24, 25):
    _attention("opset", f"opset {opset}", "bool[B,1,1,T]", opset=opset)

# Cache, lengths, scores.
PAST, PRESENT = ", float16[B,4,P,16] pk, float16[B,4,P,16] pv", ", float16[B,4,PT,16] ok, float16[B,4,PT,16] ov"
SAME = PRESENT.replace("PT", "PS")
_node("past and present", "past and present", more=PAST, operands=", , pk, pv", outputs="y, ok, ov", shows=PRESENT)
_node("past and present", "past, present unread", more=PAST, operands=", , pk, pv")
_node("past and present", "past and present, causal", f", {CAUSAL}", keys="S", more=PAST, operands=", , pk, pv",
      outputs="y, ok, ov", shows=SAME)  # fmt: skip
_node("past and present", "past and present, causal, one query", f", {CAUSAL}", keys="1", queries="1", more=PAST,
      operands=", , pk, pv", outputs="y, ok, ov", shows=PRESENT.replace("PT", "P1"))  # fmt: skip
_node("past and present", "past and present, causal, bool mask", f", {CAUSAL}", more=f"{PAST}, bool[B,1,1,PT] m",
      operands=", m, pk, pv", outputs="y, ok, ov", shows=PRESENT)  # fmt: skip
_node("past and present", "past and present, window", f", {LEFT}, {CAUSAL}", keys="S", more=PAST,
      operands=", , pk, pv", outputs="y, ok, ov", shows=SAME)  # fmt: skip
_node("past and present", "past and present, softcap, causal", f", {CAP}, {CAUSAL}", keys="S", more=PAST,
      operands=", , pk, pv", outputs="y, ok, ov", shows=SAME)  # fmt: skip
_node("past and present", "present without past", outputs="y, ok, ov", shows=PRESENT.replace("PT", "T"))
for mask, word in (("", ""), ("bool[B,1,S,T]", ", bool mask"), ("float16[S,T]", ", float mask")):
    for mode in range(4):
        _node("qk_matmul_output_mode", f"scores, mode {mode}{word}", f", qk_matmul_output_mode: int = {mode}",
              more=f", {mask} m" if mask else "", operands=", m" if mask else "", outputs="y, , , w",
              shows=", float16[B,4,S,T] w")  # fmt: skip
for mode in range(4):
    _node("qk_matmul_output_mode", f"scores, mode {mode}, causal, softcap, bool mask",
          f", qk_matmul_output_mode: int = {mode}, {CAP}, {CAUSAL}", more=", bool[B,1,1,T] m", operands=", m",
          outputs="y, , , w", shows=", float16[B,4,S,T] w")  # fmt: skip
_node("qk_matmul_output_mode", "scores nobody reads", ", qk_matmul_output_mode: int = 1", outputs="y, , , w")
for word, attributes, mask in (
    ("", "", ""),
    (", causal", f", {CAUSAL}", ""),
    (", bool mask", "", ", bool[S,T] m"),
    (", float mask", "", ", float16[B,1,S,T] m"),
    (", window", f", {BOTH}", ""),
    (", softcap, causal", f", {CAP}, {CAUSAL}", ""),
):
    _node("nonpad_kv_seqlen", f"nonpad_kv_seqlen{word}", attributes, more=f", int64[B] n{mask}",
          operands=", m, , , n" if mask else ", , , , n")  # fmt: skip


def _counted(queries: str) -> ir.Model:
    inputs = f"float16[B,4,{queries},16] q, float16[B,4,T,16] k, float16[B,4,T,16] v, int64[B] n"
    body = "[attn] y = Attention <scale: float = 0.25> (q, k, v, , , , n)"
    made = g.model(inputs, body, f"float16[B,4,{queries},16] y")
    g.node(made).metadata_props[POSITIVE] = "1"
    return made


for queries, word in (("S", ""), ("1", ", one query")):
    add("nonpad_kv_seqlen", f"nonpad_kv_seqlen, a key in each row{word}", lambda q=queries: _counted(q))  # type: ignore[misc]

# One tensor in several places.
HALF = "float16[B,4,S,64]"
_HEAD = '<ir_version: 11, opset_import: ["" : 25]> g'
for name, inputs, body in (
    ("Q, K and V one tensor", "q v", "[attn] y = Attention (q, q, q)"),
    ("two attentions on one Q", "q k l v", "[a] s = Attention (q, k, v) [b] t = Attention (q, l, v) y = Add (s, t)"),
    ("two attentions on one K", "p q k v", "[a] s = Attention (q, k, v) [b] t = Attention (p, k, v) y = Add (s, t)"),
):
    names = [n for n in inputs.split() if f"{n}," in body or f"{n})" in body]
    text("shared operands", name, f"{_HEAD} ({', '.join(f'{HALF} {n}' for n in names)}) => ({HALF} y) {{ {body} }}")

import target_features_foreign  # noqa: E402, F401 (adds its rows after these)

__all__ = ["FEATURES"]
