"""Pages that are run: README.md and docs/. `python tests/pages.py [PAGE ...]` writes their transcripts anew.

On a page, a fenced block with `file=NAME` is a file, a `sh` block holds commands, one a line, and a `python` block
without a name is run. They are run in the order of the page, in a folder of its own or, with `<!-- after: PAGE -->`,
in that of another page; `<!-- in a copy of the repository -->` puts the sources there first. `<!-- output: COMMAND -->`
before a `text` block says that the block is what the command just printed, numbers by their place only
(`masked`); `<!-- exact output: COMMAND -->`, to the last character. The folder's own path is left out of both.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))

# Shown to be typed by the reader, since a network and minutes are needed: what is run in their place.
BY_HAND = {"git clone <this repository> attnproof && cd attnproof": "", "make build": "python -m export build"}

_PART = re.compile(
    r"(?:^<!-- (?P<exact>exact )?output: (?P<command>.*?) -->\n)?"
    r"^```(?P<kind>\w+)(?: file=(?P<name>\S+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_COPY, _COPIED = "<!-- in a copy of the repository -->", ("export", "engines", "plugins", "tests", "pyproject.toml")
_AFTER = re.compile(r"^<!-- after: (\S+) -->$", re.MULTILINE)


class NotRightError(Exception):
    """A command of a page failed, or a transcript belongs to no command."""


@dataclass(frozen=True)
class Shown:
    """A transcript: the command, what the page says it prints, what it printed, and whether every character counts."""

    command: str
    text: str
    printed: str
    exact: bool


def after(page: Path) -> Path | None:
    """Returns the page that is run before this one, in the same folder."""
    found = _AFTER.search(page.read_text(encoding="utf-8"))
    return (page.parent / found[1]).resolve() if found else None


def python(page: Path) -> list[str]:
    """Returns the Python blocks of a page that are no files."""
    found = _PART.finditer(page.read_text(encoding="utf-8"))
    return [m["text"] for m in found if m["kind"] == "python" and not m["name"]]


def play(page: Path, place: Path) -> Iterator[Shown]:
    """Runs a page in a folder, and yields its transcripts.

    Raises:
        NotRightError: A command failed, or a transcript is of a command that was not run before it.
    """
    printed: dict[str, str] = {}
    text = page.read_text(encoding="utf-8")
    for name in _COPIED if _COPY in text else ():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    for part in _PART.finditer(text):
        kind, block = part["kind"], part["text"]
        if part["name"]:
            (place / part["name"]).parent.mkdir(parents=True, exist_ok=True)
            (place / part["name"]).write_text(block)
        elif part["command"]:
            if part["command"] not in printed:
                raise NotRightError(f"{page.name}: no block before this one runs its command:\n{part[0]}")
            yield Shown(part["command"], block, printed[part["command"]], bool(part["exact"]))
        elif kind in ("sh", "python"):
            commands = block.splitlines() if kind == "sh" else [f"python -c {shlex.quote(block)}"]
            for command in filter(None, (BY_HAND.get(line, line) for line in commands)):
                done = run(command, place)
                if done.returncode:
                    raise NotRightError(f"{page.name}: {command}\n{done.stdout}\n{done.stderr}")
                printed[command] = done.stdout.replace(f"{place}/", "")


def run(command: str, place: Path) -> "subprocess.CompletedProcess[str]":
    """Runs one line of a shell block in a folder."""
    here = {**environment(), "ATTNPROOF_CACHE": str(place / "cache")}  # what other tests built is not in it
    return subprocess.run(["bash", "-c", command], cwd=place, env=here, capture_output=True, text=True)


def environment() -> dict[str, str]:
    """Returns an environment in which `python` is this one, on a machine that shows no GPU."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    if not any(entry.name == "attnproof" for entry in entry_points(group="pytest11")):
        found["PYTEST_PLUGINS"] = "export.parity.pytest_plugin"  # a source tree that was not installed
    return found


def masked(text: str) -> str:
    """Numbers that a machine, a version or rounding moves are compared by their place only."""
    text = re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", text)
    cases = ("typical", "example", "redrawn", "peaked", "large-logits", "profile-max", "odd", "one-batch", "one-token")
    for case in cases:
        text = text.replace(case, "case")  # which one is worst may differ by a hair between machines
    return re.sub(r"[ -]{2,}", "  ", text)


def same(shown: Shown) -> bool:
    """Says whether a command printed what its page shows."""
    return shown.text == shown.printed if shown.exact else masked(shown.text) == masked(shown.printed)


def refreshed(page: Path, place: Path) -> str:
    """Returns a page's text with its transcripts as they are now; those that say the same stay as they are."""
    outputs = {(s.command, s.text): s.text if same(s) else s.printed for s in play(page, place)}

    def written(part: re.Match[str]) -> str:
        if not part["command"]:
            return part[0]
        start, end = (at - part.start() for at in part.span("text"))
        return part[0][:start] + outputs[part["command"], part["text"]] + part[0][end:]

    return _PART.sub(written, page.read_text(encoding="utf-8"))


def main(words: list[str]) -> int:
    """Runs the pages that are named, all by default, and writes into them what their commands print."""
    for page in [Path(word).resolve() for word in words] or PAGES:
        with tempfile.TemporaryDirectory() as name:
            before = after(page)
            for _ in play(before, Path(name)) if before else ():
                pass
            page.write_text(refreshed(page, Path(name)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
