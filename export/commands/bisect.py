"""`bisect A B`: the first tensor where two models part, the node that makes it, and the likely cause."""

import argparse
from pathlib import Path

from export.errors import UsageError
from export.report import stdout
from export.spec import EXPORTERS

_MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bisect`."""
    add = parser.add_argument
    kinds = "path/to/file.py:factory, package.module:factory, a form, an .onnx file, an artifact folder or an engine"
    add("a", metavar="A", help=f"what is right: {kinds}")
    add("b", metavar="B", help="what is judged, one of the same")
    add("--inputs", metavar="X.npz", help="arrays by A's input names (np.savez); without it they are drawn")
    add("--dtype", choices=("fp32", "fp16"), help="precision of a module's export (default: that of the other)")
    add("--exporter", choices=EXPORTERS, default="dynamo", help="how a module is exported (default: dynamo)")
    add("--memory", type=int, metavar="MIB", help="what the tensors compared at a time may take (default: 2048)")


def execute(args: argparse.Namespace) -> int:
    """Searches and prints; exit code 1 where they part."""
    from export.bisect import feeds, side, tensors
    from export.bisect.search import search
    from export.report import bisection

    if args.memory is not None and args.memory < 1:
        raise UsageError(f"--memory {args.memory} holds no tensor; give 1 or more.")
    limit = tensors.LIMIT if args.memory is None else args.memory * _MIB
    a, b = side.open_both(args.a, args.b, exporter=args.exporter, dtype=args.dtype)
    cases = [feeds.given(Path(args.inputs), a)] if args.inputs else feeds.drawn(a)
    found = search(a, b, cases, limit=limit)
    if args.json:
        stdout.write_json(found.as_json())
    elif not args.quiet:
        stdout.write(bisection.render(found))
    return 0 if found.equal else 1
