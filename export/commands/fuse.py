"""`fuse IN.onnx -o OUT.onnx`: makes each attention of a graph one op, and writes a row about every one it met."""

import argparse
import logging
from pathlib import Path

from export.errors import UsageError
from export.report import formats
from export.spec import MASKED_ROWS, TARGETS, Spec

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `fuse`."""
    parser.add_argument("model", metavar="IN.onnx", help="the ONNX file to fuse; not changed unless -o names it")
    parser.add_argument("-o", "--out", required=True, metavar="OUT.onnx", help="where the fused model is written")
    parser.add_argument(
        "--target",
        choices=TARGETS,
        help="lower the result for this backend (default: ort, standard ONNX in the spellings ONNX Runtime runs)",
    )
    parser.add_argument("--report", metavar="R.json", help="write the rows as JSON")
    parser.add_argument("--require", metavar="all|N", help="exit 1 unless all, or N, attentions end as one op")
    reading_flags(parser)


def reading_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `fuse` and `inspect` share."""
    parser.add_argument(
        "--no-verify", action="store_true", help="do not run each fusion before and after on ONNX Runtime"
    )
    parser.add_argument(
        "--masked-rows",
        choices=MASKED_ROWS,
        default="keep",
        help="what a query row without keys gives (default: keep, as before, except that a fused one gives 0 for NaN)",
    )
    formats.flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Fuses, writes, prints, and judges `--require`."""
    from export import fusing
    from export.report import attentions, console, files, lowering, results

    Spec(require=args.require)  # refuses a wrong --require before any work
    if args.report and not Path(args.report).absolute().parent.is_dir():
        raise UsageError(f"Cannot write {args.report}: its folder does not exist; create it first.")
    form = formats.chosen(args, args.format)
    with console.watching():
        fused = fusing.fuse(
            args.model, args.out, target=args.target, verify=not args.no_verify, masked_rows=args.masked_rows
        )
    _log.info("wrote %s", args.out)
    if args.report:
        files.write_json(args.report, fused.as_json())
        _log.info("wrote %s", args.report)
    failure = fusing.unmet(fused.attentions, args.require)

    def human() -> str:
        steps = "".join(
            f"lowered {line}\n" for line in lowering.lines((s.attention, s.action, s.why) for s in fused.steps)
        )
        rows = attentions.render(fused.attentions, rotations=fused.rotations)
        return rows + steps + ("FAILED\n" if failure else "PASSED\n")

    formats.write(
        args,
        form,
        human=human,
        json=fused.as_json,
        results=lambda: results.of_attentions(fused.attentions, required=args.require == "all", unmet=failure),
        passed=not failure,
    )
    if failure:
        _log.error("%s", failure)
    return 1 if failure else 0
