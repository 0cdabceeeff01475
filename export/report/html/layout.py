"""Where the nodes of a small directed graph go: in layers, so that every edge points down, with few crossings.

The steps are those of Sugiyama, Tagawa and Toda (1981): layers by longest path, orders by the barycentre of neighbours,
places by moving nodes towards their neighbours without overlap.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

_ROW, _GAP, _CHARACTER, _PADDING = 58, 18, 6.6, 22
_LONGEST = 26
_SWEEPS = 8


def layout(drawing: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a drawing with places.

    Args:
        drawing: "nodes" and "edges" as `export.pictures.neighbourhood.around` returns them.

    Returns:
        "nodes": as given, each with "x" and "y" of its middle, "w", and the "label" and "small" that are written;
        "edges": the points of each, from top to bottom; "width" and "height" in pixels.
    """
    nodes = [_labelled(node) for node in drawing["nodes"]]
    edges = [(int(a), int(b)) for a, b in drawing["edges"]]
    level = _levels(len(nodes), edges)
    widths = [node["w"] for node in nodes]
    chains: list[list[int]] = []
    short: list[tuple[int, int]] = []
    for a, b in edges:
        chain = [a]
        for row in range(level[a] + 1, level[b]):
            chain.append(len(widths))
            widths.append(6.0)
            level.append(row)
        chain.append(b)
        chains.append(chain)
        short += pairwise(chain)
    rows = _ordered(level, short)
    x = _placed(rows, widths, short)
    left = min((x[i] - widths[i] / 2 for i in range(len(widths))), default=0.0) - _GAP
    for at, node in enumerate(nodes):
        node |= {"x": round(x[at] - left), "y": level[at] * _ROW + 30, "w": round(node["w"])}
    points = [[[round(x[i] - left), level[i] * _ROW + 30] for i in chain] for chain in chains]
    right = max((x[i] + widths[i] / 2 for i in range(len(widths))), default=0.0)
    height = (max(level, default=0) + 1) * _ROW
    return {"nodes": nodes, "edges": points, "width": round(right - left + _GAP), "height": height}


def _labelled(node: Mapping[str, Any]) -> dict[str, Any]:
    label = _cut(str(node["op"] or node["name"]))
    small = _cut(str(node["note"] or node["shape"]))
    return {**node, "label": label, "small": small, "w": max(len(label), len(small), 6) * _CHARACTER + _PADDING}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 9]}…{text[-8:]}"


def _levels(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the layer of each node: below all that it reads; what reads nothing stands just above its reader."""
    level = [0] * count
    for _ in range(count):
        moved = False
        for a, b in edges:
            if level[b] <= level[a]:
                level[b], moved = level[a] + 1, True
        if not moved:
            break
    reading = {b for _, b in edges}
    for node in range(count):
        readers = [level[b] for a, b in edges if a == node]
        if node not in reading and readers:
            level[node] = min(readers) - 1
    return level


def _ordered(level: Sequence[int], edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(max(level, default=-1) + 1)]
    for node, at in enumerate(level):
        rows[at].append(node)
    above, below = _neighbours(edges, len(level))
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            near = above if down else below
            place = {node: at for other in rows for at, node in enumerate(other)}
            middle = {node: (_mean([place[m] for m in near[node]], place[node]), place[node]) for node in row}
            row.sort(key=middle.__getitem__)
    return rows


def _placed(rows: Sequence[Sequence[int]], widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> list[float]:
    x = [0.0] * len(widths)
    above, below = _neighbours(edges, len(widths))
    for row in rows:
        _spread(row, [0.0] * len(row), widths, x)
    for sweep in range(_SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            _spread(row, [_mean([x[m] for m in near[n]], x[n]) for n in row], widths, x)
    return x


def _spread(row: Sequence[int], wanted: Sequence[float], widths: Sequence[float], x: list[float]) -> None:
    """Places a row as near to the wanted places as its order and widths let it."""
    right = float("-inf")
    for node, want in zip(row, wanted, strict=True):
        x[node] = max(want, right + widths[node] / 2)
        right = x[node] + widths[node] / 2 + _GAP
    if row:
        shift = sum(want - x[node] for node, want in zip(row, wanted, strict=True)) / len(row)
        for node in row:
            x[node] += shift


def _neighbours(edges: Sequence[tuple[int, int]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        above[b].append(a)
        below[a].append(b)
    return above, below


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
