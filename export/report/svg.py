"""The few shapes of SVG that the plots are made of; no library, so that the same numbers give the same file."""

from html import escape

PALETTE = ("#1b6ca8", "#e07b39", "#5b8c5a", "#8d6aa8", "#8a8a8a", "#c2474c")
INK, GRID = "#333333", "#dddddd"


class Drawing:
    """A picture being drawn."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Takes the size in pixels, and the title that screen readers read."""
        self._size = (width, height)
        self._title = title
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = GRID, width: float = 1) -> None:
        """Draws a line."""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"/>'
        )

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Draws a filled rectangle."""
        self._parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>')

    def dot(self, x: float, y: float, color: str, radius: float = 4) -> None:
        """Draws a filled circle."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}"/>')

    def text(self, x: float, y: float, words: str, *, anchor: str = "middle", size: int = 12) -> None:
        """Writes words; `anchor` is "start", "middle" or "end"."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">'
            f"{escape(words)}</text>"
        )

    def legend(self, x: float, y: float, names: dict[str, str], step: float) -> None:
        """Writes names beside their colours, from left to right."""
        for i, (name, color) in enumerate(names.items()):
            self.box(x + i * step, y - 10, 12, 12, color)
            self.text(x + i * step + 17, y, name, anchor="start")

    def render(self) -> str:
        """Returns the file's text."""
        width, height = self._size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" role="img" aria-label="{escape(self._title, quote=True)}">'
        )
        ground = f'<rect width="{width}" height="{height}" fill="white"/>'
        return "\n".join([head, f"<title>{escape(self._title)}</title>", ground, *self._parts, "</svg>"]) + "\n"
