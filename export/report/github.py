"""Results as workflow commands of GitHub Actions: annotations at the user's source lines where those are known.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

import os
from collections.abc import Sequence

from export.report.results import Result

_COMMANDS = {"fail": "error", "kept": "warning", "not run": "notice"}


def render(results: Sequence[Result], *, passed: bool) -> str:
    """Returns a line for each result that is not ok, alike ones together, and last PASSED or FAILED."""
    lines: dict[str, None] = {}
    alike: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.status == "not run":
            alike.setdefault((result.group, result.message), []).append(result.name)
        elif result.status in _COMMANDS:
            title = f"{result.group} {result.name}" if result.suite == "parity" else result.name
            lines[_command(_COMMANDS[result.status], title, result.message, result.place)] = None
    for (group, message), names in alike.items():
        lines[_command("notice", f"{group} NOT RUN ({len(names)} cases)", message, None)] = None
    return "".join(f"{line}\n" for line in [*lines, "PASSED" if passed else "FAILED"])


def _command(name: str, title: str, message: str, place: tuple[str, int] | None) -> str:
    properties = {"title": title}
    if place:
        properties = {"file": _relative(place[0]), "line": str(place[1]), **properties}
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {listed}::{_data(message or title)}"


def _relative(file: str) -> str:
    """Returns a path as GitHub wants it, from the repository's root, where it lies below the working folder."""
    if not os.path.isabs(file):
        return file
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative.replace(os.sep, "/")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
