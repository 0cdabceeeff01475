"""The pictures of docs/reader.md: `python tests/reader_pictures.py` draws them of the tutorial's model."""

import re
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.capture import capture, load_source
from export.fuse import Options, fuse
from export.pictures.neighbourhood import around
from export.report.html.layout import layout
from export.report.svg import INK, PALETTE, Drawing

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
KINDS = {
    "scores": ("products with K and V", PALETTE[0]),
    "scale": ("scale", PALETTE[3]),
    "mask": ("mask", PALETTE[1]),
    "softmax": ("softmax", PALETTE[2]),
    "rope": ("rotary embedding", PALETTE[5]),
}
SAME = {"values": "scores"}
PLAIN = "#9a9a9a"
_HEAD = 40


def drawn() -> dict[str, str]:
    """Returns {file name: SVG} of the tutorial's attention, mended: as exported, and fused."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    code = re.search(r"^```python file=encoder\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert code is not None
    with tempfile.TemporaryDirectory() as place:
        Path(place, "encoder.py").write_text(code[1].replace("-100.0", 'float("-inf")'))
        before = capture(load_source(f"{place}/encoder.py:make"), dtype="fp16", opset=23).model
    result = fuse(before, Options(verify=False))
    (row,) = result.attentions
    kinds = {read.node: read.kind for read in row.trail}
    (product,) = (read.node for read in row.trail if read.kind == "values")
    pictures = {
        "before.svg": (before, product, "The tutorial's attention as PyTorch exported it"),
        "after.svg": (result.model, row.name, "The same attention, fused"),
    }
    return {name: _svg(around(_named(model, node), kinds), title) for name, (model, node, title) in pictures.items()}


def _named(model: ir.Model, name: str) -> ir.Value:
    return next(node.outputs[0] for node in model.graph if node.name == name)


def _svg(drawing: Mapping[str, Any], title: str) -> str:
    """Returns a drawing as it is laid out in report.html, with a legend of what the nodes were read as."""
    placed = layout(drawing)
    kinds = {SAME.get(node["kind"], node["kind"]) for node in placed["nodes"]}
    legend = {words: colour for kind, (words, colour) in KINDS.items() if kind in kinds}
    width = max(placed["width"], 180 * len(legend) + 20)
    picture = Drawing(width, placed["height"] + _HEAD, title)
    picture.legend(12, 22, legend, 180)
    left = (width - placed["width"]) // 2
    for points in placed["edges"]:
        for (x1, y1), (x2, y2) in pairwise(points):
            picture.line(left + x1, _HEAD + y1, left + x2, _HEAD + y2, PLAIN)
    for node in placed["nodes"]:
        _, colour = KINDS.get(SAME.get(node["kind"], node["kind"]), ("", PLAIN if node["op"] else INK))
        x, y, wide = left + node["x"] - node["w"] / 2, _HEAD + node["y"] - 19, node["w"]
        picture.box(x, y, wide, 38, colour)
        picture.box(x + 2, y + 2, wide - 4, 34, "#ffffff" if node["op"] else "#eeeeee")
        picture.text(left + node["x"], y + 16, node["label"], size=12)
        picture.text(left + node["x"], y + 31, node["small"], size=10)
    return picture.render()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in drawn().items():
        (FOLDER / name).write_text(svg)
    sys.exit()
