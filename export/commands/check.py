"""`check DIR`: judges an artifact folder again, its files by sha256 and its stages by parity."""

import argparse
from pathlib import Path

from export.report import formats


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `check`."""
    parser.add_argument("folder", metavar="DIR", help="an artifact folder that build wrote; it is not changed")
    formats.flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Judges and prints the report."""
    from export.recheck import recheck
    from export.report import console

    form = formats.chosen(args, args.format)
    with console.watching():
        report = recheck(Path(args.folder))
    formats.write_report(args, form, report)
    return 0 if report.passed else 1
