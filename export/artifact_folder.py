"""Reading an artifact folder back: what its build recorded, and how long its runs took where somebody kept that."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import engine_json
from export.errors import UsageError
from export.report.folder import REPORT
from export.report.record import Report

LATENCIES = "run*.json"
"""Where `run DIR --repeat N --json > DIR/run.cpu.json` may have kept a latency."""


@dataclass(frozen=True)
class Artifact:
    """A folder that `build` wrote.

    Attributes:
        folder: Where it is.
        report: report.json.
        versions: What the build depended on by name, e.g. {"torch": "2.13.0", "code": a sha256}.
        sizes: Bytes of every model and engine, by file name.
        latencies: Median milliseconds by the provider that computed, of the runs that were kept.
    """

    folder: Path
    report: Report
    versions: Mapping[str, str]
    sizes: Mapping[str, int]
    latencies: Mapping[str, float]


def read(folder: Path) -> Artifact:
    """Returns what a folder holds; no model is opened.

    Raises:
        UsageError: The folder is no finished artifact of this toolkit.
    """
    recorded = read_json(folder / engine_json.NAME)
    try:
        report = Report.from_json(read_json(folder / REPORT), folder)
        signed = [name for name in recorded["files"] if not name.endswith((".json", ".toml"))]
        names = [*signed, *(engine["file"] for engine in recorded["engines"])]
        versions = {str(key): str(value) for key, value in recorded["parts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder} is not a complete artifact ({error!r}). Build it again.") from error
    sizes = {name: (folder / name).stat().st_size for name in dict.fromkeys(names) if (folder / name).is_file()}
    return Artifact(folder, report, versions, sizes, _latencies(folder))


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of one of a folder's JSON files.

    Raises:
        UsageError: It is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no {path}: {path.parent} is not an artifact folder. Name what `build` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}). Build again.") from error
    return content


def _latencies(folder: Path) -> dict[str, float]:
    found = {}
    for path in sorted(folder.glob(LATENCIES)):
        content = read_json(path)
        try:
            if content["latency"]:
                found[str(content["provider"])] = float(content["latency"]["p50_ms"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path} is not what `run --json` prints ({error!r}). Write it anew, or remove it."
            ) from error
    return found
