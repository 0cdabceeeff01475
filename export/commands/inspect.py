"""`inspect IN.onnx`: prints what `fuse` would do with each attention, and writes nothing."""

import argparse

from export.commands.fuse import reading_flags
from export.report import formats


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `inspect`."""
    parser.add_argument("model", metavar="IN.onnx", help="the ONNX file to read")
    reading_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints the rows."""
    from export import fusing
    from export.fuse.rows import as_json
    from export.report import attentions, console, results

    form = formats.chosen(args, args.format)
    with console.watching():
        found = fusing.inspect_all(args.model, verify=not args.no_verify, masked_rows=args.masked_rows)
    formats.write(
        args,
        form,
        human=lambda: attentions.render(found.attentions, rotations=found.rotations),
        json=lambda: as_json(found.attentions, found.rotations),
        results=lambda: results.of_attentions(found.attentions),
        passed=True,
    )
    return 0
