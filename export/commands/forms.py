"""`forms`: the attention forms that come with the toolkit, one line each."""

import argparse
from typing import Any

from export.report import stdout, table


def configure(parser: argparse.ArgumentParser) -> None:
    """Takes no flags beyond the common ones."""


def execute(args: argparse.Namespace) -> int:
    """Prints every form's name, counts and summary."""
    from export.model import registry

    rows = [_row(registry.get(name)) for name in registry.form_names()]
    if args.json:
        stdout.write_json({"schema": 1, "forms": rows})
        return 0
    if args.quiet:
        return 0
    cells = [(r["name"], r["attentions"], r["ropes"], " ".join(r["exporters"]), r["summary"]) for r in rows]
    stdout.write(table.render(("form", "attentions", "ropes", "exporters", "summary"), cells))
    return 0


def _row(form: Any) -> dict[str, Any]:
    return {
        "name": form.name,
        "summary": form.summary,
        "source": form.source,
        "attentions": form.attentions,
        "ropes": form.ropes,
        "exporters": list(form.exporters),
        "padding": list(form.padding),
        "dims": {dim: list(sizes) for dim, sizes in form.dims.items()},
        "notes": list(form.notes),
    }
