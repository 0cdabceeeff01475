"""`bench [SOURCE]`: times a model, a form or a shape set beside its peers, and checks every answer."""

import argparse
import logging
import shlex
from pathlib import Path

from export.errors import UsageError
from export.report import stdout

_log = logging.getLogger(__name__)
DEFAULT_SOURCE = "cpu"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench`."""
    from export.bench.shapes import SETS

    parser.add_argument(
        "source",
        nargs="?",
        default=DEFAULT_SOURCE,
        metavar="SOURCE",
        help=f"a shape set ({', '.join(SETS)}), a form (see forms), path/to/file.py:factory, package.module:factory, "
        f"or an .onnx file (default: {DEFAULT_SOURCE}, the eight cases of BERT-like and LLaMA-like attention)",
    )
    add = parser.add_argument
    add("-o", "--out", metavar="R.json", help="write the result as JSON")
    add("--plots", metavar="DIR", help="write speedup.svg and roofline.svg into DIR")
    add("--exports", metavar="A,B", help="exports to measure (default: torchscript-17,dynamo-18,dynamo-23)")
    add("--only", metavar="WORD,...", help="only the cases of a set whose name holds one of the words, as in B1")
    add("--shapes", metavar="batch=1,...", help="sizes of symbolic dimensions of a form, factory or file")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: a shape set in bfloat16, by CUDA graphs, or an .onnx file on ONNX Runtime's CUDA provider",
    )
    add("--threads", type=int, default=2, metavar="N", help="threads of every contender (default: 2)")
    add("--seconds", type=float, default=20.0, metavar="S", help="about how long each case is timed (default: 20)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the inputs (default: 0)")
    add("--no-flex", action="store_true", help="leave out flex_attention, which is compiled for each shape")
    add("--no-verify", action="store_true", help="do not run each fusion before and after on ONNX Runtime")


def execute(args: argparse.Namespace) -> int:
    """Measures and prints; exit code 1 where an answer of this project is wrong."""
    from engines.feeds import parse_dims
    from export.bench.exports import ROUTES
    from export.bench.run import Asked, run
    from export.report import bench_plot, bench_table, files

    routes = tuple(args.exports.split(",")) if args.exports else tuple(ROUTES)
    unknown = [name for name in routes if name not in ROUTES]
    if unknown:
        raise UsageError(f"There is no export {unknown[0]!r}; choose from {', '.join(ROUTES)}.")
    if args.threads < 1 or args.seconds <= 0:
        raise UsageError("--threads takes 1 or more, and --seconds more than 0.")
    if args.out and not Path(args.out).absolute().parent.is_dir():
        raise UsageError(f"Cannot write {args.out}: its folder does not exist; create it first.")
    result = run(
        Asked(
            source=args.source,
            command=command_of(args, routes if args.exports else ()),
            routes=routes,
            sizes=parse_dims(args.shapes or ""),
            threads=args.threads,
            seconds=args.seconds,
            seed=args.seed,
            verify=not args.no_verify,
            flex=not args.no_flex,
            device=args.device,
            only=tuple(args.only.split(",")) if args.only else (),
        )
    )
    document = stdout.finite(result.as_json())
    if args.out:
        files.write_json(args.out, document)
        _log.info("wrote     %s", args.out)
    if args.plots:
        for path in bench_plot.write(document, Path(args.plots)):
            _log.info("wrote     %s", path)
    if args.json:
        stdout.write_json(document)
    elif not args.quiet:
        stdout.write(bench_table.render(document))
    return 1 if bench_table.wrong(document) else 0


def command_of(args: argparse.Namespace, routes: tuple[str, ...]) -> str:
    """Returns the command line that gives this result, without where it is written."""
    words = ["python", "-m", "export", "bench", args.source]
    words += ["--exports", ",".join(routes)] if routes else []
    for flag, value, usual in (
        ("--only", args.only, None),
        ("--shapes", args.shapes, None),
        ("--device", args.device, "cpu"),
        ("--threads", args.threads, 2),
        ("--seconds", args.seconds, 20.0),
        ("--seed", args.seed, 0),
    ):
        words += [flag, f"{value:g}" if isinstance(value, float) else str(value)] if value != usual else []
    words += ["--no-flex"] if args.no_flex else []
    words += ["--no-verify"] if args.no_verify else []
    return shlex.join(words)
