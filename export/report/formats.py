"""In which of four forms a command writes its result to stdout, and that `-q` writes none of the form for people."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from export.errors import UsageError
from export.report import stdout

if TYPE_CHECKING:
    from export.report.record import Report
    from export.report.results import Result

FORMATS = ("human", "json", "github", "junit")


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds --format."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="human: tables and sentences (default); json: one document; github: workflow commands, with the source "
        "line where it is known; junit: an XML document with a test case for each parity case and attention",
    )


def chosen(args: argparse.Namespace, given: str | None) -> str:
    """Returns the format that was asked for.

    Raises:
        UsageError: --json and another --format were both given.
    """
    if args.json and given not in (None, "json"):
        raise UsageError(f"--json and --format {given} are two formats for one stdout; leave one of them out.")
    return given or ("json" if args.json else "human")


def write(
    args: argparse.Namespace,
    form: str,
    *,
    human: Callable[[], str | None],
    json: Callable[[], Any],
    results: "Callable[[], Sequence[Result]]",
    passed: bool,
) -> None:
    """Writes a result in one form; the human one may write by itself and return None."""
    from export.report import github, junit

    if form == "json":
        stdout.write_json(json())
    elif form == "github":
        stdout.write(github.render(results(), passed=passed))
    elif form == "junit":
        stdout.write(junit.render(results()))
    elif not args.quiet:
        text = human()
        if text is not None:
            stdout.write(text)


def write_report(args: argparse.Namespace, form: str, report: "Report", **more: Any) -> None:
    """Writes a build's report; `more` is put into the JSON document besides."""
    from export.report import console, terminal
    from export.report.results import of_report

    def human() -> str | None:
        if not console.is_terminal(sys.stdout):
            return terminal.render(report)
        console.write(report)
        return None

    write(
        args,
        form,
        human=human,
        json=lambda: {**report.as_json(), "folder": str(report.folder), **more},
        results=lambda: of_report(report),
        passed=report.passed,
    )
