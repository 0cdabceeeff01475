"""The difference of two artifact folders in words: a table a section, the losses marked."""

from collections.abc import Sequence

from export.build_diff import Change, Difference
from export.fusion_lock import Loss
from export.report import table
from export.report.terminal import byte_size

_TITLES = {
    "verdict": "verdict",
    "fusion": "fusion",
    "error": "largest error / budget",
    "latency": "latency",
    "engine": "engines",
    "precision": "precision",
    "version": "versions and settings",
    "size": "sizes",
}


def render(found: Difference, losses: Sequence[Loss] = (), lock: str = "") -> str:
    """Returns the text for stdout.

    Args:
        found: The difference.
        losses: What the lock holds and NEW has not.
        lock: What became of the lock, a sentence; empty without one.
    """
    parts = [_section(title, [c for c in found.changes if c.section == name]) for name, title in _TITLES.items()]
    head = f"old: {found.old.folder}\nnew: {found.new.folder}\n"
    body = "\n".join(part for part in parts if part) or "They are equal in all that their builds recorded.\n"
    tail = "".join(f"lost: {loss}\n" for loss in losses)
    verdict = ("FAILED\n" if losses else "PASSED\n") if lock else ""
    return "\n".join(part for part in (head, body, f"{lock}\n{tail}" if lock else "") if part) + verdict


def _section(title: str, changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    rows = [(c.what, _cell(c, c.old), _cell(c, c.new), "WORSE" if c.worse else "") for c in changes]
    reasons = [f"{c.what}: {c.why}\n" for c in changes if c.worse and c.why]
    return table.render((title, "old", "new", ""), rows) + "".join(reasons)


def _cell(change: Change, value: str | float | int | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and (change.section == "size" or "bytes" in change.what):
        return byte_size(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)
