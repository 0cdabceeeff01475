"""How a block was read: each node from Q K^T to the product with V, and what it was taken for.

Taken from what the reader computed, not guessed from operators: a node is a scale if the scale changed at it.
"""

from collections.abc import Iterator

import onnx_ir as ir

from export.fuse.axes import Block
from export.fuse.rows import Read
from export.fuse.scores import Mark, Scores, Stage
from export.fuse.weights import Link


def trail(block: Block) -> tuple[Read, ...]:
    """Returns what each node of a block was read as, from the product of Q and K to that with V."""
    product = block.weights.product
    value = block.weights.value.value.name
    return (
        *_scores(block.scores),
        _read(block.softmax, "softmax", "softmax over the keys"),
        *(_link(link) for link in block.weights.links),
        _read(product, "values", f"the weights times V, '{value}'"),
    )


def _scores(scores: Scores) -> Iterator[Read]:
    marks = {mark.value.producer(): (before, mark) for before, mark in _pairs(scores.marks)}
    for node in scores.nodes:
        before, mark = marks.get(node, (None, None))
        if mark is None:
            yield _read(node, "shift", "of a number that each row loses, which no softmax sees")
        elif before is None:
            yield _read(node, "scores", f"Q, '{scores.query.value.name}', times K, '{scores.key_t.value.name}'")
        else:
            yield _read(node, *_change(before, mark, scores))


def _pairs(marks: tuple[Mark, ...]) -> Iterator[tuple[Mark | None, Mark]]:
    yield from zip((None, *marks), marks, strict=False)


def _change(before: Mark, mark: Mark, scores: Scores) -> tuple[str, str]:
    """Returns the kind and the words for what a node did to the scores."""
    if mark.stages > before.stages:
        return _stage(scores.stages[before.stages])
    if mark.softcap != before.softcap:
        return "softcap", f"softcap, {mark.softcap:g} so far"
    if mark.scale != before.scale:
        return "scale", f"scale, {mark.scale:g} so far"
    if mark.factors > before.factors:
        factor = scores.factors[before.factors]
        verb = "divided by" if factor.divides else "times"
        return "scale", f"{verb} '{factor.value.name}', a number for each {'key' if factor.of_keys else 'query'}"
    if mark.value.dtype != before.value.dtype and mark.value.dtype is not None:
        return "cast", f"cast to {mark.value.dtype.name.lower()}"
    return "layout", "axes moved, merged or split; the numbers stay"


def _stage(stage: Stage) -> tuple[str, str]:
    name = f"'{stage.value.name}'" if stage.value is not None else "a constant"
    if stage.kind == "fill":
        return "mask", f"{stage.fill:g} where {name} is {'false' if stage.keep_when else 'true'}"
    words = {
        "add": ("mask", f"plus {name}, a mask or a bias"),
        "subtract": ("mask", f"minus {name}, a mask or a bias"),
        "scale": ("scale", f"times {stage.fill:g}, masked scores too"),
        "floor": ("mask", f"{stage.fill:g} at least"),
        "shift": ("shift", "less the row's maximum, which no softmax sees"),
        "sink": ("mask", f"{stage.width} columns beside the keys, {name}"),
    }
    return words[stage.kind]


def _link(link: Link) -> Read:
    name = f"'{link.value.name}'" if link.value is not None else "a constant"
    if link.kind == "zero":
        return _read(link.node, "mask", f"0 where {name} is {'true' if link.when else 'false'}")
    if link.kind == "factor":
        return _read(link.node, "scale", f"the weights {'times' if link.when else 'divided by'} {name}")
    words = {
        "same": ("cast" if link.node.op_type == "Cast" else "layout", "the weights stay as they are"),
        "layout": ("layout", "axes of the weights moved, merged or split"),
        "cut": ("layout", "columns beside the keys cut off"),
    }
    return _read(link.node, *words[link.kind])


def _read(node: ir.Node, kind: str, words: str) -> Read:
    return Read(str(node.name or node.outputs[0].name), node.op_type, kind, words)
