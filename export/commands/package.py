"""`package DIR -o REPOSITORY`: an artifact folder as a model of a serving repository."""

import argparse
import logging
from pathlib import Path

from export.report import stdout

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `package`."""
    from export.repository import FORMATS
    from export.triton_config import KINDS

    add = parser.add_argument
    add("folder", metavar="DIR", help="an artifact folder that build wrote for target ort or tensorrt")
    add("-o", "--out", required=True, metavar="REPOSITORY", help="the repository; other models in it stay")
    add("--format", choices=FORMATS, default=FORMATS[0], help="whose repository (default: triton-repository)")
    add("--name", metavar="NAME", help="the model's name (default: the folder's)")
    add("--kind", choices=tuple(KINDS), help="where instances run (default: gpu for an engine, auto for ONNX)")
    add("--instances", type=int, default=1, metavar="N", help="how many instances, on each GPU (default: 1)")


def execute(args: argparse.Namespace) -> int:
    """Writes the model and prints its config."""
    from export import repository

    done = repository.write(Path(args.folder), Path(args.out), name=args.name, kind=args.kind, instances=args.instances)
    _log.info("wrote     %s", done.model)
    if args.json:
        stdout.write_json(done.as_json())
    elif not args.quiet:
        stdout.write(done.config.as_text())
    return 0
