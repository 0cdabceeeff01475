"""`engines ls|show|gc`: what the engine cache holds, what one engine is and whether it runs here, and clearing up."""

import argparse
from pathlib import Path

from export.errors import UsageError
from export.report import stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `engines`."""
    add = parser.add_argument
    add("action", choices=("ls", "show", "gc"), help="list the cache; describe one engine; remove from the cache")
    add("which", nargs="?", metavar="KEY|ENGINE", help="show: the key of an entry (its beginning will do) or a file")
    add("--cache", metavar="DIR", help="the cache (default: $ATTNPROOF_CACHE/engines, else the user's cache folder)")
    gc = parser.add_argument_group(
        "gc",
        "Without these, what killed builds left, damaged entries, and engines of a builder version that is not "
        "installed here are removed.",
    )
    gc.add_argument("--older-than", metavar="DAYS", type=float, help="also what was not used for so many days")
    gc.add_argument("--max-size", metavar="SIZE", help="also the longest unused until so much is left, as in 20GiB")
    gc.add_argument("--all", action="store_true", help="remove every entry")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")


def execute(args: argparse.Namespace) -> int:
    """Does one of the three."""
    from engines.store import Store, default_root
    from export import stored
    from export.report import store as view

    root = Path(args.cache).absolute() if args.cache else default_root()
    if root is None:
        raise UsageError("There is no home folder to keep a cache in; name one with --cache or $ATTNPROOF_CACHE.")
    store = Store(root)
    if (args.which is None) == (args.action == "show"):
        wants = "show wants one engine, as in: engines show 0123abcd" if args.action == "show" else "Leave it out"
        raise UsageError(f"engines {args.action} was given {args.which!r}. {wants}.")
    only_gc = [f for f in ("older_than", "max_size", "all", "dry_run") if getattr(args, f)]
    if args.action != "gc" and only_gc:
        raise UsageError(f"--{only_gc[0].replace('_', '-')} is for engines gc.")
    if args.action == "ls":
        entries = store.entries()
        damaged = sorted(set(store.every_key()) - {entry.key for entry in entries})
        if args.json:
            stdout.write_json(view.listing_json(root, entries, damaged))
        elif not args.quiet:
            stdout.write(view.listing(root, entries, damaged))
    elif args.action == "show":
        shown = stored.find(store, args.which)
        if args.json:
            stdout.write_json(view.one_json(shown))
        elif not args.quiet:
            stdout.write(view.one(shown))
    else:
        limit = stored.size(args.max_size) if args.max_size else None
        done = stored.collect(
            store, older_than=args.older_than, max_size=limit, everything=args.all, dry_run=args.dry_run
        )
        if args.json:
            stdout.write_json(view.collected_json(done))
        elif not args.quiet:
            stdout.write(view.collected(done))
    return 0
