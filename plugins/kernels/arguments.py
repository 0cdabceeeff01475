"""From the operator's attributes and shapes to what the kernel is specialised by, and the grid it runs on."""

from collections.abc import Sequence
from dataclasses import dataclass

from plugins.contract import LOWER_RIGHT, Settings
from plugins.kernels.variants import Variant

TRITON_TYPES = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32"}
SPLITS_AT_ONCE = 8
"""Partial results that one step of `combine` adds up."""


@dataclass(frozen=True)
class Problem:
    """What one compiled kernel is for; lengths are left open.

    Attributes:
        settings: The operator's attributes.
        heads, kv_heads, head_size, value_size: H, G, D, E of the contract.
        dtype: "fp16", "bf16" or "fp32" of Q, K, V and the output.
        precision: How fp32 products are rounded: "tf32", or "ieee" (full float32, many times slower on tensor cores).
    """

    settings: Settings
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    dtype: str
    precision: str = "ieee"


def constants(
    problem: Problem, variant: Variant, widen: bool = False, split: bool = False, names: Sequence[str] = ()
) -> dict[str, object]:
    """Returns every `constexpr` by name.

    Args:
        problem: What the kernel computes.
        variant: Its tile sizes.
        widen: Products in float32 whatever the type: for the interpreter, which has no bfloat16 product.
        split: Whether the decode kernel leaves partial results.
        names: The arguments of one kernel: those of its own alone. All by default.
    """
    s = problem.settings
    every: dict[str, object] = {
        "HEADS": problem.heads,
        "KV_HEADS": problem.kv_heads,
        "D": problem.head_size,
        "DV": problem.value_size,
        "SCALE": float(s.scale),
        "SOFTCAP": float(s.softcap),
        "CAUSAL": s.causal_kind != 0,
        "LOWER_RIGHT": s.causal_kind == LOWER_RIGHT,
        "WINDOW": s.window,
        "ROTARY": s.rotary_embedding_dim,
        "INTERLEAVED": bool(s.interleaved),
        "ROTATE_K": bool(s.rotate_key),
        "BIAS": bool(s.has_bias),
        "LENGTHS": bool(s.has_lengths),
        "PRECISION": problem.precision,
        "BLOCK_M": variant.block_m,
        "BLOCK_N": variant.block_n,
        "BLOCK_D": _power_of_two(problem.head_size),
        "BLOCK_DV": _power_of_two(problem.value_size),
        "BLOCK_S": SPLITS_AT_ONCE,
        "SPLIT": split,
        "PEELED": variant.peeled,
        "DESCRIPTORS": variant.descriptors,
        "SPECIALIZED": variant.specialized,
        "WIDEN": widen,
    }
    return {name: value for name, value in every.items() if not names or name in names}


def signature(names: Sequence[str], problem: Problem) -> dict[str, str]:
    """Returns the type of each kernel argument, as Triton's compiler spells types.

    Args:
        names: The arguments of the kernel in order; the upper-case ones are `constexpr`.
        problem: What the kernel computes.
    """
    pointers = dict.fromkeys(("q", "k", "v", "bias", "out"), TRITON_TYPES[problem.dtype])
    pointers |= {"cos": "*fp32", "sin": "*fp32", "lengths": "*i32", "parts": "*fp32", "sums": "*fp32"}
    return {name: "constexpr" if name.isupper() else pointers.get(name, "i32") for name in names}


def _power_of_two(size: int) -> int:
    return int(max(16, 1 << (size - 1).bit_length()))
