"""How the rows about attentions read on a terminal: one line each, and a sentence for every one that stayed."""

from collections.abc import Mapping, Sequence

from export.fuse.rows import Attention, Rotation, summarise
from export.report import table


def render(
    rows: Sequence[Attention],
    columns: Mapping[str, Sequence[str]] | None = None,
    rotations: Sequence[Rotation] = (),
) -> str:
    """Returns the table of attentions, then the reason for each that was not fused, then a line of counts.

    Args:
        rows: The attentions, in graph order.
        columns: More columns, {header: one cell for each row}.
        rotations: The rotary embeddings: a reason for each that stays or was repaired, and a line of counts.
    """
    blocks = {"block": [r.block or "-" for r in rows]} if any(r.block for r in rows) else {}
    extra = {**blocks, **(columns or {})}
    header = ("attention", "status", "code", "op", "mask", "rope", "H/Hkv x D", "error / budget", *extra)
    lines = [
        (r.name, r.status, r.code, r.op, *traits(r), heads(r), verified(r), *(cells[i] for cells in extra.values()))
        for i, r in enumerate(rows)
    ]
    text = table.render(header, lines)
    everything: tuple[Attention | Rotation, ...] = (*rows, *rotations)
    kept = [line for r in everything if r.status == "kept" for line in _about(r)]
    if kept:
        kept.append("More about a code: python -m export rule CODE\n")
    changed = [
        f"masked rows of {r.name}: {r.reason}\n" for r in rows if r.status == "fused" and r.masked_rows != "keep"
    ]
    repaired = [f"repaired {r.name}: {r.code}: {r.reason}\n" for r in rotations if r.status == "repaired"]
    return "\n".join(filter(None, (text, "".join(kept + changed + repaired), counts(rows) + _turned(rotations))))


def _turned(rotations: Sequence[Rotation]) -> str:
    if not rotations:
        return ""
    states = (("fused", "fused"), ("kept", "kept"), ("repaired", "repaired"), ("already", "already one op"))
    parts = [f"{sum(r.status == status for r in rotations)} {words}" for status, words in states]
    return f"{len(rotations)} rotary embeddings: {', '.join(parts)}.\n"


def _about(row: Attention | Rotation) -> list[str]:
    """Returns why one stayed, and what its author may change."""
    where = f" [{row.source}]" if row.source else ""
    change = [f"  to change: {row.change}\n"] if row.change else []
    return [f"kept {row.name}: {row.code}: {row.reason}{where}\n", *change]


def counts(rows: Sequence[Attention]) -> str:
    """Returns the one-line summary."""
    s = summarise(tuple(rows))
    return f"{s.found} found: {s.fused} fused, {s.kept} kept, {s.already} already one op.\n"


def heads(row: Attention) -> str:
    """Returns "8/2 x 64" for 8 query heads, 2 key/value heads of size 64; "?" where the graph does not say."""
    query, kv, size = ("?" if n is None else str(n) for n in (row.heads, row.kv_heads, row.head_size))
    return f"{query}/{kv} x {size}"


def traits(row: Attention) -> tuple[str, str]:
    """Returns mask and rope; "?" for an attention that was kept, which nobody read to the end."""
    return ("?", "?") if row.status == "kept" else (row.mask, row.rope)


def verified(row: Attention) -> str:
    """Returns the error against the budget, or that it was not run."""
    if row.verify is None:
        return "NOT RUN" if row.status == "fused" else "-"
    return f"{row.verify.max_error:.2e} / {row.verify.budget:.2e}"
