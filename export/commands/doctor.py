"""`doctor`: what this machine can build and run, found out by trying, and what to do about the rest."""

import argparse

from export.report import stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Takes no flags beyond the common ones."""


def execute(args: argparse.Namespace) -> int:
    """Prints the facts. Nothing missing is an error: the exit code is 0."""
    from engines.environment import survey
    from export.report import machine

    seen = survey()
    if args.json:
        stdout.write_json(machine.as_json(seen))
    elif not args.quiet:
        stdout.write(machine.as_text(seen))
    return 0
