"""The two pictures of a bench: speed-up by shape, and where its cases lie under the machine's roofline."""

import math
from pathlib import Path
from typing import Any

from export.report.bench_summary import Document, Line, lines
from export.report.svg import INK, PALETTE, Drawing

_BARS = {
    "attnproof": "ours",
    "best by hand": "hand",
    "best tool, same file": "tool",
    "com.microsoft": "contrib",
    "PyTorch": "torch",
}
_COLORS = dict(zip(_BARS, PALETTE, strict=False))
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 960, 400, 60, 330, 60


NAMES = {
    "speedup.svg": "Speed-up over the graph as exported, by case",
    "roofline.svg": "Useful GFLOP/s of each case under the machine's roofline",
}
"""File names of the plots, and what they show."""


def write(document: Document, folder: Path) -> list[Path]:
    """Writes speedup.svg and roofline.svg into a folder, which is made where it is missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = dict(zip(NAMES, (speedup(document), roofline(document)), strict=True))
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in made]


def speedup(document: Document) -> str:
    """Returns the SVG of the speed-up over the graph as exported, a group of bars for each case."""
    title = f"Speed-up over the graph as exported ({document['date']}, {document['machine']})"
    drawing = Drawing(_WIDTH, _HEIGHT, title)
    drawing.text(_WIDTH / 2, 22, title, size=14)
    found = lines(document)
    values = [_speed(line, name) for line in found for name in _BARS]
    top = max([1.0, *(v for v in values if v is not None)])
    step = 0.5 if top < 6 else math.ceil(top / 8)

    def height(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / (math.ceil(top / step) * step)

    for i in range(math.ceil(top / step) + 1):
        drawing.line(_LEFT, height(i * step), _WIDTH - 20, height(i * step))
        drawing.text(_LEFT - 8, height(i * step) + 4, f"{i * step:g}x", anchor="end")
    group = (_WIDTH - 20 - _LEFT) / max(len(found), 1)
    bar = group * 0.8 / len(_BARS)
    for i, line in enumerate(found):
        left = _LEFT + i * group + group * 0.1
        for j, name in enumerate(_BARS):
            value = _speed(line, name)
            if value is not None:
                drawing.box(left + j * bar, height(value), bar - 1, _BOTTOM - height(value), _COLORS[name])
        drawing.text(left + group * 0.4, _BOTTOM + 18, line.case["name"], size=11)
    drawing.line(_LEFT, height(1), _WIDTH - 20, height(1), INK)
    drawing.legend(_LEFT, _HEIGHT - 20, _COLORS, 175)
    return drawing.render()


def roofline(document: Document) -> str:
    """Returns the SVG of useful GFLOP/s over FLOP per byte, under the two ceilings that were measured in the run."""
    peak, copied = (document["ceilings"][name] / 1e9 for name in ("flops_per_second", "bytes_per_second"))
    title = f"Under the roofline: {peak:.0f} GFLOP/s, {copied:.1f} GB/s ({document['date']}, {document['machine']})"
    drawing = Drawing(_WIDTH, _HEIGHT, title)
    drawing.text(_WIDTH / 2, 22, title, size=14)
    cases = [line for line in lines(document) if line.case["flops"]]
    intensities = [line.case["flops"] / line.case["bytes"] for line in cases]
    ridge = peak / copied
    low, high = (round_(math.log10(x)) for round_, x in (
        (math.floor, min([ridge, *intensities])), (math.ceil, max([ridge, *intensities]))
    ))  # fmt: skip
    rates = [row["gflops"] for line in cases for row in (line.ours, line.export) if row is not None]
    bottom, top = math.floor(math.log10(min([peak, *rates]))), math.ceil(math.log10(peak))

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - 20 - _LEFT) * (math.log10(value) - low) / max(high - low, 1)

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(value) - bottom) / max(top - bottom, 1)

    for power in range(low, high + 1):
        drawing.line(x(10**power), _TOP, x(10**power), _BOTTOM)
        drawing.text(x(10**power), _BOTTOM + 18, f"{10.0**power:g}")
    for power in range(bottom, top + 1):
        drawing.line(_LEFT, y(10**power), _WIDTH - 20, y(10**power))
        drawing.text(_LEFT - 8, y(10**power) + 4, f"{10.0**power:g}", anchor="end")
    start = max(10.0**low, 10.0**bottom / copied)
    drawing.line(x(start), y(start * copied), x(ridge), y(peak), INK, 2)
    drawing.line(x(ridge), y(peak), _WIDTH - 20, y(peak), INK, 2)
    for line, intensity in zip(cases, intensities, strict=True):
        for row, color in ((line.export, PALETTE[4]), (line.ours, PALETTE[0])):
            if row is not None:
                drawing.dot(x(intensity), y(row["gflops"]), color)
        if line.ours is not None:
            drawing.text(x(intensity) + 7, y(line.ours["gflops"]) - 5, line.case["name"], anchor="start", size=9)
    drawing.text(_WIDTH / 2, _BOTTOM + 38, "FLOP per byte; upright: GFLOP/s of useful work")
    drawing.legend(_LEFT, _HEIGHT - 10, {"attnproof": PALETTE[0], "as exported": PALETTE[4]}, 175)
    return drawing.render()


def _speed(line: Line, bar: str) -> float | None:
    row: dict[str, Any] | None = getattr(line, _BARS[bar])
    return None if row is None else float(row["speedup"]["value"])
