"""The examples run as their docstrings say, at their small sizes; examples/own_tests is collected as tests are."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from export import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
WHOLE = ("bert_like", "llama_like")
"""Built in test_whole_model_builds.py."""


def command(path: Path) -> list[str]:
    """Returns the words of the first command that a file's docstring shows."""
    found = re.search(r"^    (python .*)$", path.read_text(), re.MULTILINE)
    assert found is not None, path
    return shlex.split(found[1])


def test_each_example_shows_one_command_and_is_run() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*WHOLE, "dit_block", "informer_layer", "generate"}
    listed = pages.README.read_text()
    for path in EXAMPLES.glob("**/*.py"):
        words = command(path)
        assert (EXAMPLES.parent / words[-1].split(":")[0]).exists() or "build" in words
        assert str((path.parent if path.parent != EXAMPLES else path).relative_to(EXAMPLES.parent)) in listed


@pytest.mark.parametrize("name", ["dit_block", "informer_layer"])
def test_a_block_becomes_one_kernel(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(EXAMPLES / f"{name}.py")
    assert words[:4] == ["python", "-m", "export", "build"] and words[4] == f"examples/{name}.py:make"
    small = [f"{EXAMPLES / name}.py:make_small", *words[5:], "--no-verify", "-o", str(tmp_path / "out")]
    small[small.index("--sm") + 1] = "89"
    assert cli.main(["build", *small]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "PASSED"
    (row,) = [line.split() for line in out if line.startswith("node_")]
    assert row[-1] == "fused" and row[1] in ("fused", "already"), "one op, and one kernel of the engine"


def test_a_decoder_speaks_as_pytorch_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "generate.py"],
        cwd=tmp_path,
        env=pages.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PASSED")
    assert done.stdout.splitlines()[-1] == "the same as PyTorch says"
