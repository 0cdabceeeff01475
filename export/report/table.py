"""Plain-text tables: columns as wide as their widest cell, numbers to the right, readable in a log file."""

from collections.abc import Iterable, Sequence

GAP = "  "


def render(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns the table as lines of text, the header underlined; no row gives an empty string."""
    body = [[cell(value) for value in row] for row in rows]
    if not body:
        return ""
    columns = list(zip(header, *body, strict=True))
    widths = [max(len(text) for text in column) for column in columns]
    right = [all(_is_number(text) for text in column[1:]) for column in columns]
    lines = [list(header), ["-" * width for width in widths], *body]
    return "".join(_line(line, widths, right) + "\n" for line in lines)


def cell(value: object) -> str:
    """Returns how a value reads in a cell: "-" for None, four significant digits for a float."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(cells, widths, right, strict=True))
    return GAP.join(padded).rstrip()


def _is_number(text: str) -> bool:
    if text == "-":
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
