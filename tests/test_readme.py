"""The README is true: its files are written, its commands run, and what it shows as output is what they print."""

import json
import re
import shlex
from pathlib import Path

import forms_table
import readme

# Shown to be typed by the reader: a network and minutes are needed. `make build` is the first transcript's command.
BY_HAND = {"git clone <this repository> attnproof && cd attnproof", "make build"}


def test_files_commands_and_transcripts_are_true(tmp_path: Path) -> None:
    for name, text in readme.files().items():
        (tmp_path / name).write_text(text)
    shown = readme.transcripts()
    # `make build` is typed by hand; what it runs is the first transcript's command.
    commands = [line for block in readme.blocks("sh") for line in block.text.splitlines() if line not in BY_HAND]
    for command in [next(iter(shown)), *commands]:
        done = readme.run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command in shown:
            assert masked(done.stdout) == masked(shown.pop(command)), command
    assert not shown, "every command with a transcript is in a block before it"
    (plain,) = [block.text for block in readme.blocks("python") if not block.name]
    assert len([line for line in plain.splitlines() if line.strip()]) <= 8
    done = readme.run(f"python -c {shlex.quote(plain)}", tmp_path)
    assert done.returncode == 0, done.stderr


def masked(text: str) -> str:
    """Numbers that a machine, a version or rounding moves are compared by their place only."""
    text = re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", text)
    for case in ("typical", "example", "redrawn", "peaked", "large-logits", "profile-max", "odd"):
        text = text.replace(case, "case")  # which one is worst may differ by a hair between machines
    return re.sub(r"[ -]{2,}", "  ", text)


def test_the_table_is_that_of_the_json() -> None:
    rows = json.loads(forms_table.JSON.read_text())
    assert readme.README.read_text() == forms_table.with_table(readme.README.read_text(), forms_table.markdown(rows))


def test_every_form_is_in_the_table() -> None:
    from export.model import registry

    assert [row["form"] for row in json.loads(forms_table.JSON.read_text())] == list(registry.form_names())


def test_every_command_is_in_the_table_of_commands() -> None:
    from export.cli import VERBS

    listed = re.findall(r"^\| `(\w+)", readme.README.read_text(), re.MULTILINE)
    assert set(VERBS) <= set(listed)
