"""The search: the outputs, then the blocks in order, then the tensors inside the first block that parts.

A block ends in the first paired tensor at or after an attention; of a module, in the output of one of its own modules.
What an agreeing block is computed from is taken for right. Inside, a tensor counts only if one after it parts as well:
names that an exporter counts up may meet by chance.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from export.bisect import cause as causes
from export.bisect import walk
from export.bisect.feeds import Feeds
from export.bisect.judging import Judge, Judged
from export.bisect.pairs import Pair, by_module, by_name, exits, scope
from export.bisect.result import Bisection, Node
from export.bisect.side import Side
from export.bisect.tensors import LIMIT, Tensors
from export.bisect.yardstick import OfGraph, OfModule, OfOutputs, Yardstick
from export.errors import UsageError
from export.graph.source_lines import source_line
from export.parity.precision import precision

_log = logging.getLogger(__name__)


def search(a: Side, b: Side, cases: Iterable[Feeds], *, limit: int = LIMIT) -> Bisection:
    """Returns where B parts from A in the first case that tells them apart.

    Args:
        a: What is right.
        b: What is judged.
        cases: The inputs.
        limit: Bytes that the arrays of one batch of tensors may take.

    Raises:
        UsageError: A graph does not run on the inputs, or no output of B is one of A.
    """
    ours, theirs = Tensors(a.model, a.weights), Tensors(b.model, b.weights)
    notes = _unpaired(a, ours, theirs)
    count = compared = 0
    how = ""
    for feeds in cases:
        count += 1
        run = _Case(a, b, ours, theirs, feeds, limit)
        found = run.search()
        compared += run.judge.compared
        how = run.yardstick.how
        _log.info("case      %s: %s", feeds.case, "they part" if found else "within budget")
        if found is not None:
            return replace(found, cases=count, compared=compared, truth=how, notes=(*notes, *found.notes))
    return Bisection(a.name, b.name, a.dtype, how, count, compared, notes=notes)


def _unpaired(a: Side, ours: Tensors, theirs: Tensors) -> tuple[str, ...]:
    """Returns which outputs of B are not judged, a sentence; of a module they go by their places.

    Raises:
        UsageError: None would be.
    """
    paired = {pair.name for pair in by_name(ours, theirs)} & set(theirs.outputs)
    if a.is_module:
        paired = set(theirs.outputs) if len(ours.outputs) == len(theirs.outputs) else set()
    if not paired:
        raise UsageError(
            f"No output of B is one of A: B gives {', '.join(theirs.outputs)}, A {', '.join(ours.outputs)}. Outputs "
            "are paired by name, or by place where there are as many."
        )
    rest = [name for name in theirs.outputs if name not in paired]
    return (f"A has no output for {', '.join(rest)} of B: not compared.",) if rest else ()


class _Case:
    """One case."""

    def __init__(self, a: Side, b: Side, ours: Tensors, theirs: Tensors, feeds: Feeds, limit: int) -> None:
        self._sides, self._case = (a, b), feeds
        self._a, self._feeds = ours, feeds.of(a)
        dtype = precision(a.dtype)
        self.judge = Judge(theirs, feeds.of(b), dtype, limit, b.runner)
        self._graph = OfGraph(ours, self._feeds, dtype)
        self._pairs = by_name(ours, theirs)
        self.yardstick: Yardstick = self._graph
        if a.is_module:
            self.yardstick = OfModule(a.source, feeds.inputs or {}, dtype)

    def search(self) -> Bisection | None:
        a = self._sides[0]
        if a.is_module:
            paths = [path for path, _ in a.source.module.named_modules() if path]
            pairs = by_module(paths, self._a, self.judge.b)
            ends, parts = ([p for p in pairs if p.key.startswith("#") is end] for end in (True, False))
            widens = self.judge.runner is None
            judged = OfOutputs(a.source, self._case.inputs or {}, self.judge.dtype, widens=widens)
            block, _ = self.judge.first(judged, ends)
            if block is not None:
                block = self.judge.first(self.yardstick, parts)[0] or block
            target = None if block is None else self._exported(block.pair)
        else:
            outputs = [pair for pair in self._pairs if pair.name in self.judge.b.outputs]
            block, _ = self.judge.first(self._graph, outputs)
            target = None if block is None else block.pair
        if block is None:
            return None
        self.judge.runner = None  # what follows looks into the graph
        if target is None:
            return self._told(block, block, (), ("The export names no tensor of its own for it.",))
        return self._inside(block, target)

    def _exported(self, pair: Pair) -> Pair | None:
        """Returns the pair of a module's output with the tensor of its export."""
        if pair.key.startswith("#"):
            return Pair(self._a.outputs[int(pair.key[1:])], pair.name)
        name = exits(self._a.model.graph).get(pair.key)
        return Pair(name, pair.name) if name in self._a.values else None

    def _inside(self, outer: Judged, target: Pair) -> Bisection:
        again, _ = self.judge.first(self._graph, [target])
        a, b = self._sides
        if again is None:
            what = "the module's own export" if a.is_module else f"the graph that {b.name} was built from"
            note = f"On ONNX Runtime {what} agrees with the other graph here: what parts is not a node of it."
            return self._told(outer, outer, (), (note,))
        graph = self.judge.b.model.graph
        values = self.judge.b.values
        before = walk.before(values[target.name])
        inner = [pair for pair in self._pairs if pair.name in before]
        block, good = self.judge.first(self._graph, [p for p in self._blocks(inner) if p.name != target.name])
        block = block or again
        settled = {name for pair in good for name in walk.before(values[pair.name])}
        wanted = walk.before(values[block.pair.name]) - settled - {block.pair.name}
        region = {j.pair.name: j.parted for j in self.judge.each(self._graph, [p for p in inner if p.name in wanted])}
        parted = {name for name, is_parted in region.items() if is_parted} | {block.pair.name}
        paired = {*region, block.pair.name}
        first = next((n for n in region if n in parted and walk.after(values[n], paired) & parted), block.pair.name)
        tensor = block if first == block.pair.name else self._again(first)
        agreed = settled | (set(region) - parted)
        told = self._told(block, tensor, walk.between(graph, values[first], agreed), ())

        return replace(told, block=outer.parting()) if block is again else told

    def _again(self, name: str) -> Judged:
        (pair,) = (pair for pair in self._pairs if pair.name == name)
        return next(self.judge.each(self._graph, [pair]))

    def _blocks(self, pairs: list[Pair]) -> list[Pair]:
        """Returns the first paired tensor at or after each attention of either graph, in B's order."""
        names = {pair.name for pair in pairs}
        keys = {pair.key: pair.name for pair in pairs}
        found = {name for end in walk.ends(self.judge.b.model.graph) for name in walk.nearest(end, names)}
        found |= {keys[key] for end in walk.ends(self._a.model.graph) for key in walk.nearest(end, keys)}
        return [pair for pair in pairs if pair.name in found]

    def _told(self, block: Judged, tensor: Judged, suspects: tuple[ir.Node, ...], notes: tuple[str, ...]) -> Bisection:
        a, b = self._sides
        node = self.judge.b.values[tensor.pair.name].producer()
        graphs = causes.Graphs(self._a, self.judge.b, self._feeds, self.judge.dtype)
        found = causes.overflowed(graphs, block) if notes else causes.find(graphs, block, tensor)
        likely = found.causes
        named = found.node or (_node(node) if node is not None else None)
        return Bisection(
            a.name, b.name, a.dtype, "", 0, 0, self._case.case, block.parting(), tensor.parting(),
            named, tuple(_node(n) for n in suspects), likely[0] if likely else None, likely[1:], notes,
        )  # fmt: skip


def _node(node: ir.Node) -> Node:
    return Node(node.name or str(node.outputs[0].name), node.op_type, scope(node), source_line(node))
