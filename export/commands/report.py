"""`report DIR`: writes report.html into an artifact folder again, from the JSON files in it."""

import argparse
import logging
from pathlib import Path

from export.report import formats

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `report`."""
    parser.add_argument(
        "folder",
        metavar="DIR",
        help="an artifact folder that build wrote; bench.json in it (bench SOURCE -o DIR/bench.json) is shown too",
    )
    formats.flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Writes the page and prints what the build found; nothing is run again."""
    import json

    from export.errors import UsageError
    from export.report import html
    from export.report.folder import REPORT
    from export.report.record import Report

    form = formats.chosen(args, args.format)
    folder = Path(args.folder)
    path = html.write(folder)
    try:
        found = Report.from_json(json.loads((folder / REPORT).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / REPORT} is not a report of this version ({error!r}). Build it again.") from error
    _log.info("wrote     %s", path)
    formats.write_report(args, form, found)
    return 0 if found.passed else 1
