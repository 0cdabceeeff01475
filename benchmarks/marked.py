"""What stands between a page's markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`; the lines of its tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def with_text(page: str, name: str, text: str) -> str:
    """Returns the page with the text between its markers replaced.

    Args:
        page: The page's text.
        name: What the markers are called.
        text: What is to stand between them, its last line ended.

    Raises:
        ValueError: The page does not have both markers.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"The page has no {begin.strip()} followed by {end}; write both where the text is to stand.")
    return f"{head}{begin}{text}{end}{tail}"


def write(page: Path, name: str, text: str) -> None:
    """Replaces the text between the markers of a page."""
    page.write_text(with_text(page.read_text(), name, text))


def table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Returns the lines of a table in Markdown."""
    return [row(heads), "|" + "---|" * len(heads), *map(row, rows)]


def row(cells: Iterable[Any]) -> str:
    """Returns a line of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
