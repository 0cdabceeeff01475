"""Decides what is done to the weights after the softmax: needless, part of the mask, or moved to where it commutes.

    where(c, 0, P) @ V = where(c, 0, P @ V)   c one number a row of queries      (c * P) @ V = c * (P @ V)
    where(c, 0, P) @ V = P @ where(c^T, 0, V) c one number a key                 (P * c) @ V = P @ (c^T * V)

Zeros that vary over both queries and keys must be zeros already: hidden before the softmax, by a proof (`hidden`) or
because the same condition fills the scores with a finite number, which may then be -inf.
"""

from dataclasses import replace
from math import inf, prod

import onnx_ir as ir

from export.fuse.hidden import Hidden, positive
from export.fuse.scores import Scores, Stage
from export.fuse.weights import Link, Weights
from export.graph.laws.levels import zero_or_one
from export.graph.laws.softmax import MAY_OVERFLOW
from export.graph.values import Refusal, dims, label, made_by, same, uniform
from export.lower.bounds import bound

_SHALLOW = 1e4
"""What is added up to this is a bias; a mask may be deeper."""


def settle(softmax: ir.Node, scores: Scores, weights: Weights) -> tuple[Scores, Weights]:
    """Returns the scores and the weights with every step after the softmax decided.

    Raises:
        Refusal: A step can neither be proved needless nor moved; the sentence names its node.
    """
    by_hand = softmax.metadata_props.get(MAY_OVERFLOW)
    if weights.guarded and by_hand is not None:
        raise Refusal(
            "K308",
            f"{by_hand} writes a softmax without taking the row's maximum off, and NaN is set to 0 behind it: "
            "where exponentials overflow or are all 0, the op has numbers instead.",
        )
    _check_shifts(softmax, scores)
    hidden = Hidden(scores)
    zeroed: list[tuple[Link, int]] = []
    for at, link in enumerate(weights.links):
        if link.kind not in ("zero", "factor") or link.value is None:
            continue
        zeros = _as_zeros(link)
        whole = not weights.divided and _unmoved(softmax, scores, link)
        if zeros is not None and zeros.value is not None and whole:
            if hidden.key(zeros.value, zeros.when) or hidden.every(zeros.value, zeros.when):
                absorbed = (*weights.absorbed, *_between(zeros.value, scores))
                weights = replace(weights, guarded=True, absorbed=absorbed)
                continue
            if any(_matches(stage, zeros) for stage in scores.stages):
                zeroed.append((zeros, at))
                continue
        weights = _moved(softmax, link, weights, at)
    _check_sums(softmax, scores, weights)
    deepened = tuple(zeros for zeros, _ in zeroed)
    if deepened and _deepens(scores, deepened):
        weights = replace(weights, guarded=True, deepened=deepened)
        return replace(scores, stages=tuple(_deep(stage, deepened) for stage in scores.stages)), weights
    for _, at in zeroed:
        weights = _moved(softmax, weights.links[at], weights, at)
    return scores, weights


def _check_shifts(softmax: ir.Node, scores: Scores) -> None:
    """Taking a maximum off changes nothing that is normalised next; it makes a row that is all deep a shallow one."""
    for at, stage in enumerate(scores.stages):
        before, after = scores.stages[:at], {s.kind for s in scores.stages[at + 1 :]}
        deep = any(_is_deep(s) for s in before)
        if stage.kind == "shift" and ("sink" in after or (deep and after & {"add", "subtract", "fill"})):
            raise Refusal(
                "K122",
                f"The scores of {label(softmax)} are masked, less their row's maximum and masked again: "
                "rows without keys then start from 0.",
            )


def _check_sums(softmax: ir.Node, scores: Scores, weights: Weights) -> None:
    """Masks are added up before they meet the scores: in half precision their sum may leave the range, theirs not.

    Such a row has no key that is seen. Where weights are normalised anew it would become NaN.
    """
    added = [s for s in scores.stages if s.kind in ("add", "subtract")]
    fills = [-s.fill for s in scores.stages if s.kind == "fill" and s.fill > -inf]
    deepest = [*(bound(s.value).finite for s in added), *fills]
    small = any(s.value is not None and s.value.dtype == ir.DataType.FLOAT16 for s in added)
    depth = sum(d for d in deepest if d < inf) + float(ir.DataType.FLOAT16.max) * deepest.count(inf)
    if small and len(deepest) > 1 and weights.divided and depth > float(ir.DataType.FLOAT16.max):
        raise Refusal(
            "K309",
            f"The weights of {label(softmax)} are normalised anew, and the masks added to its scores may leave "
            "float16's range together: rows that both hide would become NaN.",
        )


def _is_deep(stage: Stage) -> bool:
    if stage.kind == "fill":
        return stage.fill > -inf
    return stage.kind in ("add", "subtract") and bound(stage.value).finite > _SHALLOW


def _as_zeros(link: Link) -> Link | None:
    """Returns a step as zeros under a condition: a factor that is a boolean in numbers is one."""
    if link.kind == "zero":
        return link
    value = link.value
    while link.when and value is not None and value.dtype != ir.DataType.BOOL:
        cast = made_by(value, "Cast")
        if cast is None or not zero_or_one(value):
            return None
        value = cast.inputs[0]
    return replace(link, kind="zero", value=value, when=False) if link.when and value is not None else None


def _unmoved(softmax: ir.Node, scores: Scores, link: Link) -> bool:
    """Says whether the weights at a step are laid out as the scores that the softmax read, and that the masks saw."""
    straight = all(stage.layout.straight for stage in scores.stages) and scores.layout.straight
    return link.layout == scores.layout and (straight or all(s.layout == scores.layout for s in scores.stages))


def _matches(stage: Stage, zeros: Link) -> bool:
    """Says whether a fill of the scores has the very condition under which weights become 0."""
    if stage.kind != "fill" or stage.value is None or zeros.value is None:
        return False
    have, wanted = positive(stage.value, stage.keep_when), positive(zeros.value, not zeros.when)
    return have[1] == wanted[1] and same(have[0], wanted[0])


def _deepens(scores: Scores, zeroed: tuple[Link, ...]) -> bool:
    """Says whether -inf may stand for the finite fills whose keys' weights become 0 after the softmax.

    A row of such keys only gives 0 either way. In any other, nothing that is left may be as deep as they are: no fill
    of another condition, nothing added, no sink and no floor that a deeper fill would be brought back to.
    """
    last = len(scores.stages)
    fills = [(s, at) for at, s in enumerate(scores.stages) if s.kind == "fill" and s.fill > -inf]
    if any(not any(_matches(stage, zeros) for zeros in zeroed) for stage, _ in fills):
        return False
    if any(stage.kind in ("floor", "sink") for stage in scores.stages):
        return False
    factors = [prod(s.fill for s in scores.stages[at + 1 :] if s.kind == "scale") for at in range(last)]
    shallowest = min((-stage.fill * factors[at] for stage, at in fills), default=inf)
    added = ((s, at) for at, s in enumerate(scores.stages) if s.kind in ("add", "subtract"))
    return sum(bound(stage.value).finite * factors[at] for stage, at in added) <= shallowest / 2


def _deep(stage: Stage, zeroed: tuple[Link, ...]) -> Stage:
    return replace(stage, fill=-inf) if any(_matches(stage, zeros) for zeros in zeroed) else stage


def _moved(softmax: ir.Node, link: Link, weights: Weights, at: int) -> Weights:
    """Moves a step that is the same for all keys behind the product, one that is the same for all queries onto V."""
    value, shape = link.value, dims(link.before)
    length, room = dims(value), weights.value.value
    if value is None or length is None or shape is None:
        raise Refusal(
            "K201", f"The shape of '{None if value is None else value.name}' at {label(link.node)} is not known."
        )
    still = weights.layout.targets == link.layout.targets
    fits = still and link.layout.straight and len(length) <= len(shape)
    if fits and (uniform(value) is not None or not length or length[-1] == 1):
        return replace(weights, behind=(*weights.behind, link))
    over_keys = len(length) == 1 or (len(length) > 1 and length[-2] == 1)
    lead, have = length[:-2], (dims(room) or ())[:-2]
    within = len(lead) <= len(have) and all(a in (1, b) for a, b in zip(reversed(lead), reversed(have), strict=False))
    settled = link.kind == "factor" or not weights.divided
    whole = not any(step.kind == "cut" for step in weights.links)
    if fits and over_keys and within and whole and settled and (link.kind == "zero" or link.when):
        return replace(weights, columns=(*weights.columns, link))
    if link.kind == "zero":
        raise Refusal(
            "K305",
            f"Weights of {label(softmax)} are set to 0 after the softmax under '{value.name}', "
            "which does not mask the scores before it, or not as deep as all else that does.",
        )
    raise Refusal(
        "K307",
        f"{label(link.node)} changes the weights of {label(softmax)} by '{value.name}', "
        "which varies over queries and keys and is no mask that the scores have.",
    )


def _between(condition: ir.Value, scores: Scores) -> tuple[ir.Node, ...]:
    """Returns the nodes that compute a condition from the scores: they go when it is needless."""
    marked, found = {mark.value for mark in scores.marks}, dict[ir.Node, None]()

    seen: dict[ir.Value, bool] = {}

    def walk(value: ir.Value | None, depth: int) -> bool:
        if value is None or value in marked:
            return value is not None
        if value not in seen:
            node = value.producer()
            seen[value] = node is not None and depth > 0 and any([walk(v, depth - 1) for v in node.inputs])
            if seen[value] and node is not None:
                found[node] = None
        return seen[value]

    walk(condition, 16)
    return tuple(found)
