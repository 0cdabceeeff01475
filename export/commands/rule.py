"""`rule [CODE]`: prints the page about a rule code, or the list of all codes."""

import argparse

from export.errors import UsageError
from export.report import stdout


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the code."""
    parser.add_argument("code", nargs="?", metavar="CODE", help="a rule code such as K203; without it, all are listed")


def execute(args: argparse.Namespace) -> int:
    """Prints the page or the list."""
    from export import rules
    from export.report import table

    if args.code is None:
        found = [rules.rule(code) for code in rules.codes()]
        if args.json:
            stdout.write_json({"schema": 1, "rules": [{"code": r.code, "title": r.title} for r in found]})
        elif not args.quiet:
            stdout.write(table.render(("code", "title"), [(r.code, r.title) for r in found]))
        return 0
    try:
        one = rules.rule(args.code.upper())
    except KeyError:
        near = rules.near(args.code)
        hint = f"near it are {', '.join(near)}" if near else "`rule` without a code lists all"
        raise UsageError(f"There is no rule {args.code!r}; {hint}.") from None
    if args.json:
        fields = {"code": one.code, "title": one.title, "meaning": one.meaning, "change": one.change, "page": one.page}
        stdout.write_json({"schema": 1, **fields})
    elif not args.quiet:
        stdout.write(one.page)
    return 0
