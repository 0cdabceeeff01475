"""The parts of the README that are run, and `python tests/readme.py`, which writes its transcripts anew."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
_BLOCK = re.compile(r"^```(?P<kind>\w+)(?: file=(?P<name>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_TRANSCRIPT = re.compile(r"^<!-- output: (?P<command>.*?) -->\n```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it stands for if any, its text."""

    kind: str
    name: str | None
    text: str


def blocks(kind: str) -> list[Block]:
    """Returns the fenced blocks of one language, in order."""
    found = _BLOCK.finditer(README.read_text(encoding="utf-8"))
    return [Block(m["kind"], m["name"], m["text"]) for m in found if m["kind"] == kind]


def files() -> dict[str, str]:
    """Returns the files that the README shows."""
    return {block.name: block.text for block in blocks("python") if block.name}


def transcripts() -> dict[str, str]:
    """Returns {command: the output shown for it}."""
    return {m["command"]: m["text"] for m in _TRANSCRIPT.finditer(README.read_text(encoding="utf-8"))}


def environment() -> dict[str, str]:
    """Returns an environment in which `python` is this one, on a machine that shows no GPU."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    if not any(entry.name == "attnproof" for entry in entry_points(group="pytest11")):
        found["PYTEST_PLUGINS"] = "export.parity.pytest_plugin"  # a source tree that was not installed
    return found


def run(command: str, place: Path) -> "subprocess.CompletedProcess[str]":
    """Runs one line of a shell block in a folder."""
    here = {**environment(), "ATTNPROOF_CACHE": str(place / "cache")}  # what other tests built is not in it
    return subprocess.run(["bash", "-c", command], cwd=place, env=here, capture_output=True, text=True)


def main() -> int:
    """Runs every command of the README and writes the outputs into it."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for file, text in files().items():
            (place / file).write_text(text)
        for script in ("foreign.py", "tokens.py"):
            run(f"python {script}", place).check_returncode()
        outputs = {}
        for command in transcripts():
            done = run(command, place)
            if done.returncode:
                print(done.stdout + done.stderr, file=sys.stderr)
                return done.returncode
            outputs[command] = done.stdout
    text = _TRANSCRIPT.sub(
        lambda m: f"<!-- output: {m['command']} -->\n```text\n{outputs[m['command']]}```", README.read_text()
    )
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
