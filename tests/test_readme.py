"""The README is true: its files are written, its commands run, and what it shows as output is what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forms_table
import pytest
import readme

ROOT = Path(__file__).parents[1]
# Shown to be typed by the reader: a network and minutes are needed. `make build` is the first transcript's command.
BY_HAND = {"git clone <this repository> attnproof && cd attnproof", "make build"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README shows, in which its commands have been run in order."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in readme.files().items():
        (folder / name).write_text(text)
    return folder


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    return readme.run(command, place)


def commands() -> list[str]:
    return [line for block in readme.blocks("sh") for line in block.text.splitlines() if line not in BY_HAND]


def test_everything_that_can_be_run_is(place: Path) -> None:
    for command in commands():
        done = run(command, place)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    plain = [block.text for block in readme.blocks("python") if not block.name]
    assert len(plain) == 1
    lines = [line for line in plain[0].splitlines() if line.strip()]
    assert len(lines) <= 8
    done = subprocess.run(
        [sys.executable, "-c", plain[0]], cwd=place, env=readme.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", readme.transcripts())
def test_transcripts_are_what_the_command_prints(place: Path, command: str) -> None:
    for prelude in commands():
        if prelude.startswith("python foreign.py"):
            run(prelude, place)
    done = run(command, place)
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(readme.transcripts()[command])


def masked(text: str) -> str:
    """Numbers that a machine, a version or rounding moves are compared by their place only."""
    text = re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", text)
    text = re.sub(r"(at \w+)\[[#, ]*\]|\b(typical|example|redrawn|odd|peaked|profile-max|[a-z-]+) at", r"\1", text)
    return re.sub(r"[ -]{2,}", "  ", text)


def test_the_table_is_that_of_the_json() -> None:
    import json

    rows = json.loads(forms_table.JSON.read_text())
    assert readme.README.read_text() == forms_table.with_table(readme.README.read_text(), forms_table.markdown(rows))


def test_every_form_is_in_the_table() -> None:
    import json

    from export.model import registry

    assert [row["form"] for row in json.loads(forms_table.JSON.read_text())] == list(registry.form_names())


def test_every_command_is_in_the_table_of_commands() -> None:
    from export.cli import VERBS

    listed = re.findall(r"^\| `(\w+)", readme.README.read_text(), re.MULTILINE)
    assert set(VERBS) <= set(listed)
    assert os.path.exists(ROOT / "constraints.txt")
