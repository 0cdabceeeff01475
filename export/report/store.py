"""The engine cache in words and as JSON."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.store import Entry
from export.report import table
from export.report.terminal import byte_size
from export.stored import Collected, Shown

_KEY = 12


def listing(root: Path, entries: Sequence[Entry], damaged: Sequence[str]) -> str:
    """Returns one line an entry, the last used first, and the sum."""
    rows = [
        (
            entry.key[:_KEY],
            entry.label or "-",
            f"{entry.record.vendor} {entry.record.version}",
            str(entry.record.sm),
            entry.parts.get("dtypes", "-"),
            byte_size(entry.size),
            _date(entry.used),
        )
        for entry in entries
    ]
    header = ("key", "built from", "builder", "SM", "dtypes", "size", "last used")
    lines = table.render(header, rows) if rows else ""
    lines += "".join(f"{key[:_KEY]}: damaged; engines gc removes it\n" for key in damaged)
    total = sum(entry.size for entry in entries)
    return f"{lines}{len(entries)} engines, {byte_size(total)}, in {root}\n"


def listing_json(root: Path, entries: Sequence[Entry], damaged: Sequence[str]) -> dict[str, Any]:
    """Returns the same as JSON."""
    return {"schema": 1, "root": str(root), "engines": [_entry(e) for e in entries], "damaged": list(damaged)}


def one(shown: Shown) -> str:
    """Returns all there is to say about one engine."""
    record, entry = shown.record, shown.entry
    facts = {
        "engine": str(shown.path),
        "sha256": record.sha256,
        "builder": f"{record.vendor} {record.version}",
        "SM": str(record.sm),
        "flags": ", ".join(f"{k}={v}" for k, v in record.flags.as_dict().items()) or "none",
        "inputs": "; ".join(map(str, record.inputs)),
        "outputs": "; ".join(map(str, record.outputs)),
        "profile": ", ".join(f"{n}={':'.join(map(str, r))}" for n, r in record.dims.items()) or "fixed shapes",
    }
    if entry:
        facts |= {"built from": entry.label or "-", "built": _date(entry.created), "last used": _date(entry.used)}
        facts |= {f"part {name}": value for name, value in entry.parts.items()}
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}\n" for name, value in facts.items()]
    return "".join(lines) + f"\nruns here: {'yes' if shown.runs else 'no'}: {shown.why}\n"


def one_json(shown: Shown) -> dict[str, Any]:
    """Returns the same as JSON."""
    record = {**asdict(shown.record), "flags": shown.record.flags.as_dict()}
    found: dict[str, Any] = {"schema": 1, "path": str(shown.path), **record, "runs": shown.runs, "why": shown.why}
    return {**found, "entry": _entry(shown.entry) if shown.entry else None}


def collected(done: Collected) -> str:
    """Returns what went and what is left."""
    went = [item for item in done.removed if not item.busy]
    verb = "would go" if done.dry_run else "removed"
    lines = [f"{verb}: {r.key[:_KEY]} ({byte_size(r.size)}): {r.why}\n" for r in went]
    lines += [f"in use, left: {r.key[:_KEY]}\n" for r in done.removed if r.busy]
    if done.swept:
        lines.append(f"removed: what killed builds left, {done.swept} files and folders\n")
    freed = sum(item.size for item in went)
    tail = (
        f"{len(went)} engines, {byte_size(freed)}, {verb}; {done.entries} engines, {byte_size(done.size)}, are there\n"
    )
    return "".join(lines) + tail


def collected_json(done: Collected) -> dict[str, Any]:
    """Returns the same as JSON."""
    return {"schema": 1, **asdict(done)}


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "label": entry.label,
        "vendor": entry.record.vendor,
        "version": entry.record.version,
        "sm": entry.record.sm,
        "size": entry.size,
        "sha256": entry.record.sha256,
        "created": entry.created,
        "used": entry.used,
        "parts": entry.parts,
    }


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
