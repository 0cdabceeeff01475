"""What is chosen by measurement, as data: reads variants.json, says which row holds for a GPU, and takes new rows in.

Three lists: `kernels` (tiles, warps and stages by kernel, type and head size, best first), `key_rotation` and `splits`.
Every row says for which compute capability it holds (`sm`; null for any) and its `source`: "estimated", or "measured"
with the device, date and versions. `python benchmarks/tune_kernel.py` on a GPU writes measured rows.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("variants.json")
ESTIMATED, MEASURED = "estimated", "measured"
KEYS = {"kernels": ("kernel", "dtype", "head_size", "sm"), "key_rotation": ("sm",), "splits": ("sm",)}
"""What tells a row of a list from the others."""

Document = dict[str, Any]
Row = dict[str, Any]


@functools.cache
def document(path: Path = DATA) -> Document:
    """Returns the whole file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def row(kind: str, sm: int | None, **what: Any) -> Row:
    """Returns the row that holds for a GPU: measured on its compute capability, or else the one for any.

    Args:
        kind: "kernels", "key_rotation" or "splits".
        sm: Compute capability, e.g. 90; None where it is not known, for which the newest measured row holds.
        what: The other values the row must have.
    """
    return _row(document(), kind, sm, what)


def _row(found: Document, kind: str, sm: int | None, what: Mapping[str, Any]) -> Row:
    rows = [r for r in found[kind] if all(r[k] == v for k, v in what.items())]
    measured = [r for r in rows if r["source"] == MEASURED and sm in (None, r["sm"])]
    general = [r for r in rows if r["sm"] is None]
    best = max(measured, key=lambda r: str(r["date"]), default=None) or next(iter(general), None)
    if best is None:
        raise KeyError(f"{DATA.name} has no row of {kind} for SM {sm} and {dict(what)}.")
    return dict(best)


def general(kind: str, **what: Any) -> Row:
    """Returns the row that holds for any GPU."""
    return _row({kind: [r for r in document()[kind] if r["sm"] is None]}, kind, None, what)


def with_row(found: Document, kind: str, new: Row) -> Document:
    """Returns the document with a row taken in; it replaces the one that says the same of the same GPU."""
    names = KEYS[kind]
    kept = [r for r in found[kind] if any(r.get(n) != new.get(n) for n in names)]
    return {**found, kind: [*kept, new]}


def text(found: Document) -> str:
    """Returns the document as the file holds it: a row a line."""
    parts = []
    for name, value in found.items():
        rows = ",\n".join(f"  {json.dumps(r)}" for r in value) if isinstance(value, list) else ""
        parts.append(f' "{name}": [\n{rows}\n ]' if rows else f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
