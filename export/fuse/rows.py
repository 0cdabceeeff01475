"""What the fuser says about each attention: the rows of `fuse --report` and `inspect` (schema 1, a contract)."""

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Verification:
    """How far the fused block is from the block it replaced, on ONNX Runtime CPU.

    Attributes:
        max_error: Largest absolute difference seen over all cases.
        budget: The derived bound at the element where the error came closest to its bound.
        cases: How many input cases were run.
    """

    max_error: float
    budget: float
    cases: int


@dataclass(frozen=True)
class Read:
    """What one node was read as.

    Attributes:
        node: Its name, or that of its first output.
        op: Its operator.
        kind: "scores" (Q times K), "scale", "softcap", "mask", "shift", "cast", "layout", "softmax" or "values".
        words: The same in words, with the tensors by name.
    """

    node: str
    op: str
    kind: str
    words: str


@dataclass(frozen=True)
class Attention:
    """One attention found in a graph.

    Attributes:
        name: Name of the Attention node, or of the Softmax node that stayed.
        status: "fused" (this run made it one op), "kept" (it stays decomposed), "already" (it was one op on arrival).
        code: Stable rule code, e.g. "F001" fused, "A001" already, "K101" why it was kept.
        reason: One sentence.
        op: "ai.onnx::Attention" and the like; for a kept one "Softmax".
        heads, kv_heads, head_size: Query heads, key/value heads, channels a head of Q; None where unknown.
        scale: Factor on QK^T.
        softcap: c of c*tanh(x/c), or None.
        mask: What is proved of the mask, whether it is an attribute or a tensor: "none", "causal", "window", "block",
            "padding" (of keys, for all queries alike), else "bool" (a condition), "float" (numbers); joined by "+".
        rope: RotaryEmbedding ops that feed Q and K: "none", "q", "k", "qk".
        cache: "past" where the op has the keys and values of earlier calls as inputs of its own, else "none".
        masked_rows: What a query row that sees no key gives: "keep" (what it gave before) or "zero" where that changed.
        source: The user's PyTorch source line where the exporter recorded one.
        block: Path of the PyTorch module that computes it, e.g. "layers.3.attention", where the exporter recorded it.
        change: For one that was kept, what its author may change; `python -m export rule CODE` says more.
        verify: The verification result, or None where it was not run.
        trail: For one that was fused: what each node from QK^T to the product with V was read as.
    """

    name: str
    status: str
    code: str
    reason: str
    op: str
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    scale: float | None = None
    softcap: float | None = None
    mask: str = "none"
    rope: str = "none"
    cache: str = "none"
    masked_rows: str = "keep"
    source: str | None = None
    block: str | None = None
    change: str | None = None
    verify: Verification | None = None
    trail: tuple[Read, ...] = ()


@dataclass(frozen=True)
class Rotation:
    """One rotary embedding found in a graph.

    Attributes:
        name: Name of the RotaryEmbedding node, or of the node that completes a rotation that stayed.
        status: "fused", "repaired" (an op that would have run at batch 1 only), "already" or "kept".
        code: "R001" fused, "R002" already, "R003" repaired; others say why it was kept.
        reason: One sentence.
        op: "ai.onnx::RotaryEmbedding"; for a kept one the operator that completes it.
        pairing: Which channels turn together: "half" (the i-th of either half) or "interleaved"; None where kept.
        width: How many channels turn; None where unknown.
        source, change, verify: As for an attention.
    """

    name: str
    status: str
    code: str
    reason: str
    op: str
    pairing: str | None = None
    width: int | None = None
    source: str | None = None
    change: str | None = None
    verify: Verification | None = None


@dataclass(frozen=True)
class Summary:
    """Counts over the rows.

    Attributes:
        found: All attentions.
        fused: Made one op by this run.
        kept: Left decomposed.
        already: One op on arrival.
    """

    found: int
    fused: int
    kept: int
    already: int


def summarise(rows: tuple[Attention, ...]) -> Summary:
    """Returns how many attentions were found, fused, kept and already one op."""
    count = {status: sum(r.status == status for r in rows) for status in ("fused", "kept", "already")}
    return Summary(len(rows), count["fused"], count["kept"], count["already"])


def as_json(rows: tuple[Attention, ...], rotations: tuple[Rotation, ...] = ()) -> dict[str, Any]:
    """Returns the report as the JSON-ready dictionary of the `fuse --report` contract."""
    return {
        "schema": SCHEMA,
        "attentions": [asdict(r) for r in rows],
        "summary": asdict(summarise(rows)),
        "rotations": [asdict(r) for r in rotations],
    }
