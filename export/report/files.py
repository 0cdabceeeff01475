"""Writing a JSON file so that a reader sees the old one or the whole new one."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from export.errors import UsageError
from export.report.stdout import finite


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes value as indented JSON.

    Raises:
        UsageError: The folder is missing, not writable or full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(json.dumps(finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(
            f"Cannot write {path}: {error.strerror}; check the folder, its permissions and its space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
