"""The command line: picks the verb, sets up logging, and turns every way a run can end into an exit code.

Only the verb that was asked for is imported, and verbs import the heavy libraries when they run, so that `--help`
costs nothing. Exit codes: 0 ok, 1 parity or a required fusion failed, 2 usage or bad input, 3 a backend or GPU is
missing, 4 an engine build failed, 130 interrupted.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TextIO, cast

from export.errors import ToolkitError
from export.report import stdout

VERBS = {
    "build": "export, fuse, lower, build engines and check every stage: the whole flow",
    "fuse": "fuse the attentions of an ONNX file into one op each",
    "inspect": "say what fuse would do with each attention of an ONNX file, without writing",
    "rule": "explain a rule code of fuse and inspect: what it means, an example, what to change",
    "check": "judge an artifact folder again: file digests and parity",
    "run": "run a model or an artifact folder on a provider",
    "bench": "time a model, a form or a shape set beside its peers, every answer checked",
    "bisect": "find the first tensor where two models part, the node that makes it, and the likely cause",
    "diff": "compare two artifact folders: fusions, errors, engines, versions, sizes; hold a lock of fusions",
    "report": "write report.html of an artifact folder again, from its JSON files",
    "view": "draw the attention weights of a fused model as an HTML page or a PNG file",
    "package": "write an artifact folder into a model repository of Triton Inference Server",
    "engines": "list, describe and clear the engine cache: ls, show, gc",
    "forms": "list the attention forms that come with the toolkit",
    "doctor": "say what this machine can run, and why not the rest",
}

INTERRUPTED = 130
BROKEN_PIPE = 141

_log = logging.getLogger("export")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: The words after the program's name; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(words)
    except ToolkitError as error:  # stdout is full: there is nowhere to put --help
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    verbose = int(args.verbose) > 0
    form = _format(args)
    with _logging(int(args.verbose), quiet=bool(args.quiet)), _termination_unwinds():
        try:
            code = int(_command(args.verb).execute(args))
            sys.stdout.flush()
            return code
        except ToolkitError as error:
            return _fail(str(error), error, error.exit_code, form, verbose)
        except KeyboardInterrupt:
            return _fail("Interrupted; nothing was left behind.", None, INTERRUPTED, form, verbose=False)
        except BrokenPipeError:
            stdout.abandon()
            return BROKEN_PIPE
        except Exception as error:  # the last line of defence: a bug of ours must still end in a sentence
            hint = "" if verbose else " Run the command again with -v for the traceback."
            text = f"Unexpected {type(error).__name__}: {_first_line(error)}.{hint}"
            return _fail(text, error, 1, form, verbose)


def _parse(words: list[str]) -> argparse.Namespace:
    prog = "python -m export" if os.path.basename(sys.argv[0]) == "__main__.py" else "attnproof"
    parser = argparse.ArgumentParser(
        prog=prog, description="PyTorch attention into ONNX Runtime and TensorRT: fused, built, and checked in float64."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            # "resolve" lets a command give one of the common flags a meaning of its own.
            verb.conflict_handler = "resolve"
            _common_flags(verb)
            _command(name).configure(verb)
    try:
        args = parser.parse_args(words)
    except SystemExit:
        stdout.write("")  # flushes the help while a failure can still be told
        raise
    if args.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("attnproof")
        except PackageNotFoundError:
            number = "(running from a source tree that is not installed)"
        stdout.write(f"attnproof {number}\n")
        raise SystemExit(0)
    if args.verb is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    return args


def _common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout, and nothing else")
    add = parser.add_argument
    add("-v", "--verbose", action="count", default=0, help="log more, and show tracebacks; -vv: all that backends say")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print no result for people; log warnings and errors only"
    )


class _Command(Protocol):
    """What every module in export/commands offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def execute(self, args: argparse.Namespace) -> int: ...


def _command(verb: str) -> _Command:
    return cast(_Command, importlib.import_module(f"export.commands.{verb}"))


def _format(args: argparse.Namespace) -> str:
    """Returns the format that a failure is written to stdout in: the last that --format or --json names."""
    given = getattr(args, "format", None)
    named = [given] if isinstance(given, str) else given or []
    return "json" if args.json else str(named[-1]) if named else "human"


def _fail(message: str, error: Exception | None, code: int, form: str, verbose: bool) -> int:
    _log.error(message, exc_info=error if verbose else None)
    if form in ("json", "github", "junit"):
        kind = type(error).__name__ if error else "Interrupted"
        try:
            if form == "json":
                stdout.write_json({"error": {"type": kind, "message": message, "exit_code": code}})
            else:
                from export.report import github, junit
                from export.report.results import Result

                failed = [Result("verdict", "verdict", kind, "fail", message)]
                stdout.write(github.render(failed, passed=False) if form == "github" else junit.render(failed))
        except ToolkitError as unwritten:
            _log.error(str(unwritten))
    return code


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


@contextmanager
def _logging(verbose: int, *, quiet: bool) -> Iterator[None]:
    """Sends the toolkit's own log to stderr for the length of one command."""
    handler = _ToStderr()
    handler.setFormatter(_Formatter())
    ours = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    # Backends are wordy: what they say at INFO is for -v, and their DEBUG for -vv.
    theirs = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    loggers = [logging.getLogger(name) for name in ("export", "engines", "plugins")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger, level in zip(loggers, (ours, theirs, theirs), strict=True):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (old_level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: while bars are shown, lines go above them."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


class _Formatter(logging.Formatter):
    """Plain step lines; warnings and errors say what they are."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Makes SIGTERM unwind the stack as Ctrl-C does, so that staged folders are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
