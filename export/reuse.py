"""Whether an artifact folder that is already there is the one asked for, and why or why not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.engine_json import NAME as ENGINE
from export import digest
from export.report.folder import REPORT, SEAL, seal
from export.report.record import Report


@dataclass(frozen=True)
class Found:
    """The answer.

    Attributes:
        report: The earlier build's report where the folder can be used as it is, else None.
        why: The reason in words, for the log.
    """

    report: Report | None
    why: str


def find(folder: Path, parts: digest.Parts) -> Found:
    """Returns the finished build in `folder` if its fingerprints are `parts` and its files are as they were written."""
    if not (folder / ENGINE).is_file():
        return Found(None, f"no finished build in {folder} yet")
    try:
        record = json.loads((folder / ENGINE).read_text(encoding="utf-8"))
        moved = digest.difference(record["parts"], parts)
        if moved:
            return Found(None, f"{folder} is from another build: {moved}")
        damaged = changed_files(folder, record["files"]) | changed_record(record)
        if damaged:
            return Found(None, f"{folder} was changed: " + "; ".join(f"{n} {w}" for n, w in damaged.items()))
        report = Report.from_json(json.loads((folder / REPORT).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Found(None, f"{folder} is not readable as an artifact: {type(error).__name__}: {error}")
    if not report.passed:
        return Found(None, f"the build in {folder} failed")
    why = f"{folder} is up to date (digest {record['digest'][:12]}, {len(record['files'])} files intact)"
    return Found(replace(report, reused=True), why)


def changed_files(folder: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    """Returns {file: what is wrong with it} for the recorded files that are missing or differ from their sha256."""
    wrong = {}
    for name, expected in recorded.items():
        path = folder / name
        if not path.is_file():
            wrong[name] = "is missing"
        elif digest.of_file(path) != expected:
            wrong[name] = "is not the file that the build wrote (its sha256 differs)"
    return wrong


def changed_record(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns what is wrong with engine.json itself, as `changed_files` does for the files that it signs."""
    return {} if record.get(SEAL) == seal(record) else {ENGINE: "is not what the build wrote (its own sha256 differs)"}
