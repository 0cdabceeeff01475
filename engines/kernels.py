"""What became of each attention in an engine: one fused MHA kernel, a chain of GEMMs, or nothing that can be told.

The evidence is the builder's own layer list. A fused kernel is known by its tactic, `_gemm_mha_v2_...` or
`_gemv_mha_v1_...` (layer *names* may come from the user's nodes, tactics cannot), and carries the names of the ONNX
nodes it computes. Those may include a node of another attention whose arithmetic the builder shares with this one (two
attentions that scale one tensor), so kernels are handed out by elimination and never twice.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from engines.layers import Layer

FUSED_TACTIC = re.compile(r"^_+ge(?:mm|mv)_mha_v\d+(?:_|$)")
"""Tactic of a fused kernel: `_gemm_mha_v2_0x...`, or `_gemv_mha_v1_0x..._vec` for a query of fixed length 1."""

_SOFTMAX = re.compile(r"(?:MaxrSubExp|SubExpSum|Softmax)")
_FUSED_DTYPES = "fp16 and bf16"
HEAD_SIZES = (9, 256)
"""Smallest and largest head size with a fused kernel in TensorRT-RTX 1.7, measured on SM 75, 89 and 120."""


@dataclass(frozen=True)
class KernelChoice:
    """What one attention became in one engine.

    Attributes:
        attention: Name of its Attention (or Softmax) node.
        fused: True for one MHA kernel, False for separate GEMMs, None where the log does not tell.
        kernels: Names of the engine layers: the MHA kernel, or the GEMMs and the softmax.
        why: One sentence.
    """

    attention: str
    fused: bool | None
    kernels: tuple[str, ...]
    why: str


def attention_kernels(
    layers: Sequence[Layer],
    attentions: Mapping[str, Sequence[str]],
    facts: Mapping[str, tuple[str | None, int | None]] | None = None,
    profiles: int = 1,
) -> dict[str, KernelChoice]:
    """Returns what became of each attention, in the order given; then fused kernels that none of them accounts for.

    Args:
        layers: The engine's layers (`engines.layers.parse`).
        attentions: {name: names of the ONNX nodes that compute it, its Attention or Softmax node first}.
        facts: {name: (dtype of Q, head size)} where known, for the sentence on a decomposed one.
        profiles: How many the engine was built for; each has layers of its own.
    """
    if not layers:
        silent = "The builder's log lists no layers, so its kernels are not known."
        return {name: KernelChoice(name, None, (), silent) for name in attentions}
    fused = [layer for layer in layers if FUSED_TACTIC.match(layer.tactic)]
    anchors = {name: (nodes[0] if nodes else name) for name, nodes in attentions.items()}
    apart = {a for layer in layers if _SOFTMAX.search(layer.tactic) for a in layer.origins}
    owners, shared = _assign(fused, anchors, {name for name, anchor in anchors.items() if anchor in apart})
    given = set(owners.values()) | {i for kernels in shared.values() for i in kernels}
    spare = [layer for i, layer in enumerate(fused) if i not in given]
    result = {}
    for name, nodes in attentions.items():
        if name in owners:
            more = [layer for layer in spare if anchors[name] in layer.origins]
            spare = [layer for layer in spare if layer not in more]
            result[name] = _fused(name, (fused[owners[name]], *more))
            if profiles > 1 and len(more) + 1 < profiles:
                result[name] = _in_part(result[name], len(more) + 1, profiles)
        elif name in shared:
            result[name] = _one_of(name, [fused[i] for i in shared[name]])
        else:
            result[name] = _decomposed(name, layers, nodes or (name,), *((facts or {}).get(name) or (None, None)))
    for layer in spare:
        name = layer.origins[0] if layer.origins else layer.name
        if name not in result:
            result[name] = _fused(name, (layer,))
    return result


def _assign(
    fused: Sequence[Layer], anchors: Mapping[str, str], apart: Collection[str]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Returns {attention: its kernel}, and {attention: kernels that are its and its rivals', as many as they are}.

    A kernel that only one attention can have is its own; so is the only kernel an attention can have, unless another
    can have that one only: of such two, one that has a softmax kernel (`apart`) was taken apart. What remains after
    that is told apart only in number.
    """
    wanted = {a: {i for i, k in enumerate(fused) if anchor in k.origins} for a, anchor in anchors.items()}
    wanted = {a: kernels for a, kernels in wanted.items() if kernels}
    owners: dict[str, int] = {}
    while wanted:
        sure = _sure(wanted, range(len(fused)))
        if sure is None:
            loser = _loser(wanted, apart)
            if loser is None:
                break
            del wanted[loser]
            continue
        owner, kernel = sure
        owners[owner] = kernel
        wanted = {a: kernels - {kernel} for a, kernels in wanted.items() if a != owner and kernels - {kernel}}
    shared = {}
    for name, kernels in wanted.items():
        contenders = [other for other in wanted.values() if other & kernels]
        if len(set().union(*contenders)) >= len(contenders):
            shared[name] = tuple(sorted(kernels))
    return owners, shared


def _sure(wanted: Mapping[str, set[int]], kernels: Iterable[int]) -> tuple[str, int] | None:
    for kernel in kernels:
        rivals = [a for a, mine in wanted.items() if kernel in mine]
        if len(rivals) == 1:
            return rivals[0], kernel
    for name, mine in wanted.items():
        if len(mine) == 1 and sum(other == mine for other in wanted.values()) == 1:
            return name, next(iter(mine))
    return None


def _loser(wanted: Mapping[str, set[int]], apart: Collection[str]) -> str | None:
    """Returns an attention that was taken apart, of those that contend for fewer kernels than they are."""
    for name, mine in wanted.items():
        rivals = [other for other in wanted.values() if other & mine]
        if name in apart and len(rivals) > len(set().union(*rivals)):
            return name
    return None


def _fused(name: str, mine: Sequence[Layer]) -> KernelChoice:
    dtype = mine[0].inputs[0].dtype if mine[0].inputs else "unknown dtype"
    what = "One fused MHA kernel computes" if len(mine) == 1 else f"{len(mine)} fused MHA kernels compute"
    return KernelChoice(name, True, tuple(layer.name for layer in mine), f"{what} it in {dtype}.")


def _in_part(choice: KernelChoice, fused: int, profiles: int) -> KernelChoice:
    why = f"Only {fused} of the engine's {profiles} profiles has a fused MHA kernel for it; the others take it apart."
    return KernelChoice(choice.attention, False, choice.kernels, why)


def _one_of(name: str, kernels: Sequence[Layer]) -> KernelChoice:
    why = (
        f"{len(kernels)} fused MHA kernels compute it and as many others like it; the log does not say which is whose."
    )
    return KernelChoice(name, True, tuple(layer.name for layer in kernels), why)


def _decomposed(
    name: str, layers: Sequence[Layer], nodes: Collection[str], dtype: str | None, head_size: int | None
) -> KernelChoice:
    mine = [layer for layer in layers if set(layer.origins) & set(nodes) and not FUSED_TACTIC.match(layer.tactic)]
    gemms = [layer for layer in mine if layer.kind in ("gemm", "runtime_fusion")]  # the latter: with its epilogue
    softmax = [layer for layer in mine if _SOFTMAX.search(layer.tactic)]
    if not gemms and not softmax:
        elsewhere = any(set(layer.origins) & set(nodes) for layer in layers)
        why = (
            "The layers that carry its name do not tell how it is computed."
            if elsewhere
            else "No layer of the engine carries its name: the builder removed it, or merged it with another."
        )
        return KernelChoice(name, None, tuple(layer.name for layer in mine), why)
    dtype = dtype or next((t.dtype for layer in gemms for t in layer.inputs), None)
    chain = tuple(layer.name for layer in layers if layer in gemms or layer in softmax)
    what = f"It became {len(gemms)} GEMM{'s' * (len(gemms) != 1)} and a softmax kernel"
    return KernelChoice(name, False, chain, f"{what}: {_cause(dtype, head_size)}.")


def _cause(dtype: str | None, head_size: int | None) -> str:
    if dtype == "float32":
        return f"fused MHA kernels take {_FUSED_DTYPES}, and it computes in float32"
    low, high = HEAD_SIZES
    if head_size is not None and not low <= head_size <= high:
        return f"fused MHA kernels take head sizes {low} to {high}, and its is {head_size}"
    return f"the builder had no fused MHA kernel for it (they take {_FUSED_DTYPES}, head sizes {low} to {high})"
