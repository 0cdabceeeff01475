"""`check DIR`: judges an artifact folder again, its files by sha256 and its stages by parity."""

import argparse
from pathlib import Path

from export.report import stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `check`."""
    parser.add_argument("folder", metavar="DIR", help="an artifact folder that build wrote; it is not changed")


def execute(args: argparse.Namespace) -> int:
    """Judges and prints the report."""
    from export.recheck import recheck
    from export.report import terminal

    report = recheck(Path(args.folder))
    if args.json:
        stdout.write_json({**report.as_json(), "folder": str(report.folder)})
    else:
        stdout.write(terminal.render(report))
    return 0 if report.passed else 1
