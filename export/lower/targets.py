"""What each backend accepts: one row a backend, and every lowering step is derived from a row and an attention.

The rows hold facts, each measured on the version named in its row (parser and builder run, or numbers compared with
ONNX's reference implementation). A new backend is a new row; a new restriction is a smaller set in a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx_ir as ir

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Contrib:
    """What a target computes of one `com.microsoft` operator: the rest it drops, or refuses in its parser.

    Attributes:
        inputs: How many inputs it may have, from the first.
        attributes: Those it may carry, each with the one value that is honoured, or None where every value is.
    """

    inputs: int
    attributes: Mapping[str, object | None]


@dataclass(frozen=True)
class Target:
    """What one backend accepts of a graph with `ai.onnx::Attention`.

    Attributes:
        name: What the user types.
        title: Its name in sentences.
        opset: Newest ai.onnx opset it reads; None where no limit was met.
        contrib: The `com.microsoft` operators it reads, and what of them; None for all of all.
        foreign: Operators of other domains: "any" (a custom-op library may bring them), "plugin" (only under names that
            no ONNX operator has, because the domain is ignored), "none".
        types: Element types of Q, K and V that it computes.
        extras: Optional parts of the operator that it honours: "past" (past and present), "unread present" (a past
            whose present outputs are left out), "nonpad_kv_seqlen", "kv_lengths" (the same alone, on an operator of the
            target's own, TRT_Attention), "window", "softcap", "softmax_precision", "mask and causal" (both on one
            node), "value type" (V of another type than Q), "value size" (V of another head size than Q), "rotary batch"
            (cos and sin with batch 1 for any batch),
            "shared operands" (one tensor as Q or K of several attentions), "any scale" (negative or 0),
            "one query among new keys" (is_causal after a past, one query and more new keys than that), "subgraphs" (an
            attention inside the body of an If, Loop or Scan).
        scores: The values of qk_matmul_output_mode whose fourth output it computes as ONNX says; mode 2 without a mask
            counts as mode 1.
        mask_types: The mask types to hand it: "bool", "float" (Q's type), "any float", "int".
        mask_ranks: Ranks of the mask it reads as ONNX does, aligned on the right: three axes are [H, S, T].
        mask_repeats: Last axes of the mask, "query" and "key", that may have size 1 and stand for all; the batch and
            head axes may in every row.
        mask_values: Extremes it reads as ONNX does on a row without any key: "-inf" (such a row gives 0) and "lowest"
            (the type's most negative finite number: such a row gives the mean of V).
        empty_types: Element types with which a row of "-inf" gives 0 at all, a bool mask's rows included.
        fused_types: Element types for which it has one kernel for the whole attention; empty where that has no meaning.
        fused_sizes: Smallest and largest head size of that kernel.
        masked_heads: Fewest query heads with which it takes a mask.
        one_query_heads, one_query_step: Fewest query heads, and the factor of the head size, with which a single query
            is fused. A profile that fixes the number of queries at 1 makes it a single query.
        flat: Whether it reads heads in the channels, [B, S, H*D], faster than heads moved forward by Transposes.
        marks: Which attentions must carry TRT_decomposable=1, without which one that misses the kernel does not build:
            "none", "outside" (of the fused types and sizes), "all" (where the kernel's range is not known).
        plugin: When an attention becomes a node of the plugin operator: "never", where the target has no plugins;
            "function", where it has none but computes a node that is there by its ONNX function;
            "refused", where it does not compute the attention natively; "always", where it was asked for.
    """

    name: str
    title: str
    opset: int | None = None
    contrib: Mapping[str, Contrib] | None = None
    foreign: str = "any"
    types: frozenset[ir.DataType] = FLOATS
    extras: frozenset[str] = frozenset()
    scores: frozenset[int] = frozenset()
    mask_types: frozenset[str] = frozenset({"bool", "float", "any float", "int"})
    mask_ranks: frozenset[int] = frozenset({1, 2, 3, 4})
    mask_repeats: frozenset[str] = frozenset({"query", "key"})
    mask_values: frozenset[str] = frozenset({"-inf", "lowest"})
    empty_types: frozenset[ir.DataType] = FLOATS
    fused_types: frozenset[ir.DataType] = frozenset()
    fused_sizes: tuple[int, int] = (0, 0)
    masked_heads: int = 1
    one_query_heads: int = 1
    one_query_step: int = 1
    flat: bool = False
    marks: str = "none"
    plugin: str = "never"

    def hides(self, dtype: ir.DataType) -> bool:
        """Says whether -inf, and False in a bool mask, hide a key as ONNX says on rows that have no other."""
        return "-inf" in self.mask_values and dtype in self.empty_types


ONNX = Target(
    name="onnx",
    title="ONNX",
    extras=frozenset(
        {
            "past",
            "unread present",
            "nonpad_kv_seqlen",
            "window",
            "softcap",
            "softmax_precision",
            "mask and causal",
            "value type",
            "value size",
            "rotary batch",
            "shared operands",
            "any scale",
            "one query among new keys",
            "subgraphs",
        }
    ),
    scores=frozenset({0, 1, 2, 3}),
)
"""The standard itself, as onnx's reference implementation reads it: nothing is ever lowered for it."""

ORT = Target(
    name="ort",
    title="ONNX Runtime",
    opset=26,
    extras=frozenset(
        {
            "past",
            "nonpad_kv_seqlen",
            "softcap",
            "softmax_precision",
            "mask and causal",
            "value size",
            "shared operands",
            "subgraphs",
        }
    ),
    # Mode 2 shows the lowest number where ONNX says -inf.
    scores=frozenset({0, 1, 3}),
    # A mask of another floating-point type gives NaN on a row of -inf.
    mask_types=frozenset({"bool", "float", "int"}),
    mask_ranks=frozenset({2, 3, 4}),
    mask_repeats=frozenset(),
    # The lowest number serves it as minus infinity: a row filled with it gives 0.
    mask_values=frozenset({"-inf"}),
    # In float64 a row without keys gives NaN.
    empty_types=FLOATS - {ir.DataType.DOUBLE},
    # Measured on one core, 12 heads of 64, 128 and 512 tokens, with and without RotaryEmbedding: 1.07 to 1.20 times.
    flat=True,
    plugin="function",
)
"""ONNX Runtime 1.31, CPU provider. An unknown `window` attribute is an error at session creation."""

_TENSORRT = Target(
    name="",
    title="",
    # GroupQueryAttention asks for a plugin that is not there. MultiHeadAttention's padding masks and biases are parse
    # errors; its attention_bias is read, but what a row of -inf gives is not known without a GPU. RotaryEmbedding's
    # scale and packed batches are dropped without a word.
    contrib=MappingProxyType(
        {
            "Gelu": Contrib(1, {}),
            "MultiHeadAttention": Contrib(
                3, {"num_heads": None, "scale": None, "mask_filter_value": None, "unidirectional": 0}
            ),
            "RotaryEmbedding": Contrib(
                4,
                {
                    "interleaved": None,
                    "num_heads": None,
                    "rotary_embedding_dim": None,
                    "scale": 1.0,
                    "is_packed_batching": 0,
                },
            ),
        }
    ),
    foreign="none",
    types=frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}),
    # In a branch the RTX 1.7 builder loses the operands of an attention, but fuses one that is written out there.
    # Lengths on TRT_Attention are honoured. nonpad_kv_seqlen and the window are dropped without a word, shared operands
    # crash the RTX 1.7 builder, and V of another type fails to build; all else left out here is a parse error.
    extras=frozenset({"kv_lengths"}),
    scores=frozenset(),
    # A bool mask fuses too, but costs eight more kernels (a list of blocks to skip, derived at run time) and what a row
    # without keys gives is not known without a GPU; the same holds for -inf in an additive mask of the graph's making.
    mask_types=frozenset({"float"}),
    mask_ranks=frozenset({4}),
    mask_repeats=frozenset({"query"}),
    mask_values=frozenset(),
    fused_types=frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16}),
    fused_sizes=(9, 256),
    masked_heads=2,
    one_query_heads=4,
    one_query_step=8,
    marks="outside",
)

TENSORRT_RTX = replace(_TENSORRT, name="tensorrt-rtx", title="TensorRT-RTX")
"""TensorRT-RTX 1.7.1.116; its kernels' range was the same on SM 75, 80, 89 and 120, in fp16 and (from SM 80) bf16."""

TENSORRT = replace(_TENSORRT, name="tensorrt", title="TensorRT", foreign="plugin", marks="all", plugin="refused")
"""TensorRT 10.14 to 11, which share the importer with RTX. Not measured here: what it fuses depends on its GPU."""

TARGETS: Mapping[str, Target] = MappingProxyType({t.name: t for t in (ONNX, ORT, TENSORRT_RTX, TENSORRT)})
"""The rows by the name that `--target` takes."""
