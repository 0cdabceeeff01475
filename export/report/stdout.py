"""Writing the result to stdout, and surviving a reader that went away (`attnproof build | head -1`)."""

import json
import os
import sys
from typing import Any

from export.errors import UsageError


def write(text: str) -> None:
    """Writes text to stdout at once; a closed pipe is not an error, so the command keeps its own exit code.

    Raises:
        UsageError: stdout is a file on a full disk, or cannot be written for another reason.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon()
    except OSError as error:
        abandon()
        raise UsageError(
            f"stdout cannot be written: {error.strerror}; free some space, or send it elsewhere."
        ) from error


def write_json(value: Any) -> None:
    """Writes value as indented JSON; a non-finite number, which JSON has no word for, becomes a string."""
    write(json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Returns value with NaN and infinities replaced by "nan", "inf" and "-inf", so that any JSON reader takes it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def abandon() -> None:
    """Points stdout at nothing, so that Python's own flush at exit does not fail on the closed pipe again."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
    except (OSError, ValueError):  # stdout is not a real file, as under a test's capture
        pass
