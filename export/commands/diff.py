"""`diff OLD NEW`: what differs between two artifact folders, and whether a lock of fusions still holds."""

import argparse
import logging
from pathlib import Path

from export.errors import UsageError
from export.report import stdout

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `diff`."""
    add = parser.add_argument
    add("old", metavar="OLD", help="an artifact folder that build wrote")
    add("new", metavar="NEW", help="another one; neither is changed")
    add(
        "--lock",
        metavar="FUSION.lock",
        help="exit 1 where a block that this file holds as fused is not in NEW; written from OLD where it is missing",
    )
    add("--write-lock", action="store_true", help="write --lock anew from NEW, accepting what was lost")


def execute(args: argparse.Namespace) -> int:
    """Compares, prints, and judges the lock."""
    from dataclasses import asdict

    from export import artifact_folder, build_diff, fusion_lock
    from export.report import build_diff as view
    from export.report import files

    if args.write_lock and not args.lock:
        raise UsageError("--write-lock writes the file that --lock names; name it, as in --lock fusion.lock.")
    found = build_diff.compare(artifact_folder.read(Path(args.old)), artifact_folder.read(Path(args.new)))
    losses: tuple[fusion_lock.Loss, ...] = ()
    said, written = "", False
    if args.lock:
        path = Path(args.lock)
        written = args.write_lock or not path.exists()
        if written:
            side = found.new if args.write_lock else found.old
            files.write_json(path, fusion_lock.of(side.report))
            _log.info("wrote %s from %s", path, side.folder)
        lock = fusion_lock.read(path)
        losses = fusion_lock.losses(lock, found.new.report)
        origin = f", written from {'NEW' if args.write_lock else 'OLD'}" if written else ""
        said = f"lock: {path}{origin}: {len(lock['attentions'])} fused attentions, {len(losses)} lost"
    if args.json:
        told = {"path": args.lock, "written": written, "lost": [asdict(loss) for loss in losses]}
        stdout.write_json({**found.as_json(), "lock": told if args.lock else None})
    elif not args.quiet:
        stdout.write(view.render(found, losses, said))
    for loss in losses if args.json or args.quiet else ():  # else stdout has just told them
        _log.error("%s", loss)
    return 1 if losses else 0
