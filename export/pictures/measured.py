"""Measures what the pictures of a build show: its exported graph in float64 beside its fused graph at its own dtype."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from engines.errors import ToolkitError
from export import model_file, onnx_truth
from export.fuse.prepare import prepared
from export.fuse.proof.region import by_name
from export.fuse.rows import Attention
from export.ort_view import open_graph
from export.pictures import heat
from export.pictures.neighbourhood import around
from export.pictures.weights import Shown, show

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.generic]]

SCHEMA = 1
NAME = "pictures.json"
ROOM = 600_000
"""Bytes that all maps of a model may take."""
_HEAVIEST = 2**28
"""Weights beyond which nothing is run once more for pictures: 2 GiB in float64."""
_SHORT = 32

_log = logging.getLogger(__name__)


def sizes(profile: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    """Returns the sizes to draw at: the profile's usual ones, but no longer than 32 where it allows less."""
    return {name: max(low, min(opt, _SHORT)) for name, (low, opt, _) in profile.items()}


def pictures(
    exported: ir.Model, fused: ir.Model, rows: Sequence[Attention], feeds: "Arrays", dims: Mapping[str, int], dtype: str
) -> dict[str, Any]:
    """Returns pictures.json: for each attention its drawings, and its numbers or why there are none.

    Args:
        exported: The graph before fusing.
        fused: The graph after it; tensors that both have under one name are the same.
        rows: What was said about each attention.
        feeds: Inputs by the graph's names.
        dims: The sizes they were drawn with.
        dtype: The precision of the graphs.
    """
    before = _readable(exported, rows)
    places = [_Place(row, before, fused) for row in rows]
    content: dict[str, Any] = {"schema": SCHEMA, "sizes": dict(dims), "reference": None, "fused": None, "blocks": {}}
    numbers: dict[str, dict[str, Any]] = {}
    why = _too_heavy(exported)
    if why is None:
        try:
            numbers = _numbers(before, fused, places, feeds, dtype, content)
        except (ToolkitError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            why = f"The graphs did not run for their pictures: {str(error).strip().splitlines()[0]}"
            _log.debug("pictures", exc_info=True)
    for place in places:
        found = numbers.get(place.row.name, {})
        reason = None if found else why or place.reason
        content["blocks"][place.row.name] = {**place.drawings(), **found, "not_run": found.get("not_run", reason)}
    return content


class _Place:
    """Where an attention is in both graphs: the nodes that hold its weights, and the tensor it gives."""

    def __init__(self, row: Attention, before: ir.Model, after: ir.Model) -> None:
        self.row = row
        softmax = next((read.node for read in row.trail if read.kind == "softmax"), row.name)
        self.old = next((n for n in before.graph if softmax in (n.name, n.outputs[0].name)), None)
        self.new = next((n for n in after.graph if n.name == row.name), None)
        self.end = _shared_end(self.new, by_name(before)) if self.new is not None else None
        self.start = by_name(before).get(str(self.end.name)) if self.end is not None else None
        missing = "the exported" if self.old is None else "the fused" if self.new is None else None
        self.reason = f"It is not found in {missing} main graph." if missing else None

    def drawings(self) -> dict[str, Any]:
        kinds = {read.node: read.kind for read in self.row.trail}
        start = self.start or (self.old.outputs[0] if self.old is not None else None)
        end = self.end or (self.new.outputs[0] if self.new is not None else None)
        return {
            "before": around(start, kinds) if start is not None else None,
            "after": around(end, kinds) if end is not None else None,
        }


def _readable(exported: ir.Model, rows: Sequence[Attention]) -> ir.Model:
    """Returns the graph that the rows' names are of: as exported or, where functions hide them, all inlined."""
    names = {str(name) for node in exported.graph for name in (node.name, node.outputs[0].name)}
    wanted = {read.node for row in rows for read in row.trail if read.kind == "softmax"}
    return exported if wanted <= names else prepared(exported, whole=True)


def _shared_end(node: ir.Node, names: Mapping[str, ir.Value]) -> ir.Value | None:
    """Returns the first tensor behind an attention that the graph before has too."""
    waiting = [node.outputs[0]]
    for _ in range(16):
        if not waiting:
            return None
        value = waiting.pop(0)
        if value.name in names:
            return value
        waiting += [output for user, _ in value.uses() for output in user.outputs]
    return None


def _too_heavy(model: ir.Model) -> str | None:
    count = sum(
        v.const_value.size for g in model.graphs() for v in g.initializers.values() if v.const_value is not None
    )
    return None if count <= _HEAVIEST else f"Its {count:.3g} weights are too many to run it once more for pictures."


def _numbers(
    before: ir.Model,
    after: ir.Model,
    places: "Sequence[_Place]",
    feeds: "Arrays",
    dtype: str,
    content: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    found = [place for place in places if place.old is not None and place.new is not None]
    ends = [str(place.end.name) for place in found if place.end is not None]
    old = show(before, [str(place.old.name) for place in found if place.old is not None], ends)
    new = show(after, [place.row.name for place in found], ends)
    truth = onnx_truth.of(old.model, feeds)
    exact = truth.run(feeds)
    content["reference"] = truth.how
    del truth  # its weights, before those of the fused graph are opened
    wide = onnx_truth.widened(new.model, ir.DataType.FLOAT) if dtype == "bf16" else new.model
    content["fused"] = f"{'float32' if dtype == 'bf16' else dtype} on ONNX Runtime's CPU provider"
    seen = _run(wide, feeds)
    heads = sum(place.row.heads or 1 for place in found)
    cells = heat.cells_for(heads, ROOM)
    return {place.row.name: _block(place, old, new, exact, seen, cells) for place in found}


def _run(model: ir.Model, feeds: "Arrays") -> "Arrays":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.onnx"
        model_file.save(model, path)
        runner = open_graph(path)
        fed = {spec.name: feeds[spec.name] for spec in runner.inputs}
        widened = {n: x.astype("float32") if x.dtype.name == "bfloat16" else x for n, x in fed.items()}
        return runner.run(widened)


def _block(place: _Place, old: Shown, new: Shown, exact: "Arrays", seen: "Arrays", cells: int) -> dict[str, Any]:
    import numpy as np

    name, source = place.row.name, str(place.old.name if place.old is not None else "")
    reasons = [shown.reasons[key] for shown, key in ((old, source), (new, name)) if key in shown.reasons]
    result: dict[str, Any] = {"not_run": reasons[0] if reasons else None}
    if not reasons:
        heads = place.row.heads
        reference = heat.per_head(exact[old.outputs[source]].astype(np.float64), heads)
        fused = heat.per_head(seen[new.outputs[name]].astype(np.float64), heads)
        result["weights"] = _maps(reference, fused, cells)
    end = str(place.end.name) if place.end is not None else ""
    if end in exact and end in seen and exact[end].shape == seen[end].shape:
        result["error"] = {"tensor": end, **heat.errors(seen[end].astype(np.float64), exact[end].astype(np.float64))}
    return result


def _maps(reference: Any, fused: Any, cells: int) -> dict[str, Any]:
    import numpy as np

    same = reference.shape == fused.shape
    element = heat.most_hidden(reference)
    reference, fused = reference[element], fused[min(element, len(fused) - 1)]
    difference = np.abs(reference - fused) if same else None
    small = heat.pooled(reference, cells)
    return {
        "element": element,
        "heads": len(reference),
        "queries": reference.shape[1],
        "keys": reference.shape[2],
        "cells": list(small.shape[1:]),
        "reference": heat.packed(small),
        "fused": heat.packed(heat.pooled(fused, cells)) if same else None,
        "difference": heat.packed(heat.pooled(difference, cells)) if difference is not None else None,
        "seen": heat.packed(heat.pooled((reference > 0).mean(axis=0, keepdims=True), cells)),
    }
