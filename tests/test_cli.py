"""The command line's promises: cheap help, clean streams, an exit code for every ending."""

import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from export import cli
from export.errors import BackendMissingError, EngineBuildError, ToolkitError, UsageError

ROOT = Path(__file__).parents[1]


def command(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT, **options}
    return subprocess.run([sys.executable, *words], **options)  # type: ignore[call-overload]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Replaces the `forms` command by one that does what the test says."""

    def install(action):
        module = types.ModuleType("export.commands.forms")
        module.configure = lambda parser: None
        module.execute = lambda args: action()
        monkeypatch.setitem(sys.modules, "export.commands.forms", module)

    return install


def raising(error: BaseException):
    def action() -> int:
        raise error

    return action


def test_help_names_every_command_and_every_command_has_a_module() -> None:
    text = command("-m", "export", "--help").stdout
    for name in cli.VERBS:
        assert f"    {name} " in text
        assert command("-m", "export", name, "--help").stdout.startswith(f"usage: python -m export {name}")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ToolkitError("not equal"), 1),
        (UsageError("no such file"), 2),
        (BackendMissingError("no GPU"), 3),
        (EngineBuildError("no kernel"), 4),
        (KeyboardInterrupt(), 130),
        (ValueError("what now\nsecond line"), 1),
    ],
)
def test_every_ending_has_its_exit_code(
    verb, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    verb(raising(error))
    assert cli.main(["forms"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_unexpected_error_says_how_to_get_the_traceback_and_v_gives_it(verb, capsys) -> None:
    verb(raising(ValueError("what now\nsecond line")))
    cli.main(["forms"])
    assert capsys.readouterr().err == (
        "error: Unexpected ValueError: what now. Run the command again with -v for the traceback.\n"
    )
    cli.main(["forms", "-v"])
    assert "Traceback" in capsys.readouterr().err


def test_json_errors_are_json_on_stdout(verb, capsys) -> None:
    verb(raising(UsageError("no such file")))
    assert cli.main(["forms", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"type": "UsageError", "message": "no such file", "exit_code": 2}}
    assert err == "error: no such file\n"


def test_quiet_silences_steps_and_keeps_warnings(verb, capsys) -> None:
    import logging

    def action() -> int:
        logging.getLogger("export.pipeline").info("a step")
        logging.getLogger("engines.build").warning("a warning")
        return 0

    verb(action)
    cli.main(["forms"])
    assert capsys.readouterr().err == "a step\nwarning: a warning\n"
    cli.main(["forms", "-q"])
    assert capsys.readouterr().err == "warning: a warning\n"


def test_no_command_is_a_usage_error_with_the_list(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "build" in capsys.readouterr().err


def test_unknown_command_is_a_usage_error(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["biuld"])
    assert ended.value.code == 2
    assert "biuld" in capsys.readouterr().err


def test_a_closed_pipe_is_not_an_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "export", "forms"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert error == ""


@pytest.mark.parametrize("words", [["forms"], ["forms", "--json"], ["--help"], ["--version"]])
def test_a_full_stdout_is_said_in_a_sentence(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = command("-m", "export", *words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: stdout cannot be written: No space left on device")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_what_was_staged(tmp_path: Path, number: int, code: int) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import pathlib, sys, time, types\n"
        "from export import cli\n"
        "mark = pathlib.Path(sys.argv[1])\n"
        "def execute(args):\n"
        "    mark.touch()\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        mark.unlink()\n"
        "sys.modules['export.commands.forms'] = types.SimpleNamespace(configure=lambda p: None, execute=execute)\n"
        "sys.exit(cli.main(['forms']))\n"
    )
    mark = tmp_path / "staged"
    process = subprocess.Popen(
        [sys.executable, str(program), str(mark)], cwd=ROOT, env=_with_root(), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not mark.exists()


def _with_root() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
