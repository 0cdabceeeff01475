"""Random masks: what is proved of one is what ONNX Runtime computes, at every shape at which it runs."""

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from mask_graphs import MaskGraph, hold, proved

CROSS, SELF = ("B", 2, "S", "T"), ("B", 2, "L", "L")
SIZES = ({"B": 2, "S": 3, "T": 5, "L": 4}, {"B": 1, "S": 1, "T": 1, "L": 1}, {"B": 1, "S": 4, "T": 2, "L": 6})
FILLS = (-float("inf"), -3.4028234663852886e38, -1e9, -1e4)


class Program:
    """Draws a mask: integers from positions and sizes, truth values from those, numbers from truth values."""

    def __init__(self, data: st.DataObject, frame: tuple[str | int, ...]) -> None:
        self.data, self.frame = data, frame
        batch, _, queries, keys = frame
        self.graph = MaskGraph(
            q=("float", (batch, 2, queries, 4)), k=("float", (batch, 2, keys, 4)),
            pad=("int", (batch, keys)), open=("bool", (batch, 1, queries, keys)), bias=("float", (1, 2, queries, keys)),
        )  # fmt: skip
        self.queries, self.keys = self.graph.size("q", 2), self.graph.size("k", 2)

    def pick(self, *choices):
        return self.data.draw(st.sampled_from(choices))

    def small(self, low: int = -2, high: int = 3) -> str:
        return self.graph.constant(self.data.draw(st.integers(low, high)))

    def integers(self, depth: int) -> str:
        """Integers that broadcast over [S, T]."""
        g = self.graph
        kind = self.pick("row", "column", "size", "small") if depth <= 0 else self.pick(
            "row", "column", "add", "sub", "scale", "divide", "abs", "where", "size", "cumsum", "float", "remainder",
            "table",
            "tiled", "shifted",
        )  # fmt: skip
        match kind:
            case "row" | "column":
                return g.positions(self.queries if kind == "row" else self.keys, row=kind == "row")
            case "size":
                return self.pick(self.queries, self.keys)
            case "small":
                return self.small()
            case "add" | "sub":
                return g(kind.capitalize(), self.integers(depth - 1), self.integers(depth - 1))
            case "scale":
                return g("Mul", self.integers(depth - 1), self.small())
            case "divide" | "remainder":
                op = "Div" if kind == "divide" else "Mod"
                return g(op, self.integers(depth - 1), self.small(1, 3))
            case "abs":
                return g(self.pick("Abs", "Neg", "Identity"), self.integers(depth - 1))
            case "where":
                return g("Where", self.truth(depth - 1), self.integers(depth - 1), self.integers(depth - 1))
            case "cumsum":
                shape = g("Unsqueeze", self.keys, g.constant([0]))
                ones = g("Expand", g.constant([1]), shape)
                return g("CumSum", ones, g.constant(0), exclusive=self.pick(0, 1))
            case "tiled":
                twice = g("Concat", g.constant([1]), g.constant([2]), axis=0)
                wide = g("Tile", g.positions(self.keys, row=False), twice)
                end = g("Unsqueeze", self.keys, g.constant([0]))
                start = self.pick(g.constant([0]), end)
                return g("Slice", wide, start, g("Add", start, end), g.constant([1]))
            case "shifted":  # the position before, -1 before the first
                ramp = g.positions(self.keys, row=False)
                first = g("Slice", ramp, g.constant([0]), g.constant([1]), g.constant([1]))
                longer = g("Concat", g("Sub", first, g.constant(1)), ramp, axis=1)
                end = g("Unsqueeze", self.keys, g.constant([0]))
                return g("Slice", longer, g.constant([0]), end, g.constant([-1]))
            case "table":
                table = g.constant([0, 1, 2, 3, 4, 5, 6, 7] if self.pick(True, False) else [0, 1, 1, 3, 2, 5, 6, 9])
                return g("Gather", table, g.positions(self.keys, row=False))
        return g("Cast", g("Cast", self.integers(depth - 1), to=1), to=7)

    def truth(self, depth: int) -> str:
        """Truth values that broadcast over [B, 1, S, T]."""
        g = self.graph
        kind = self.pick("compare", "pad", "open", "buffer") if depth <= 0 else self.pick(
            "compare", "compare", "pad", "picked", "and", "and", "or", "not", "xor", "where", "triangle", "buffer",
            "moved", "equal", "constant", "reshaped", "joined",
        )  # fmt: skip
        match kind:
            case "compare":
                op = self.pick("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
                return g(op, self.integers(depth - 1), self.integers(depth - 1))
            case "pad":
                return g("Unsqueeze", g("Cast", "pad", to=9), g.constant([1, 2]))
            case "picked":
                return self.picked()
            case "open":
                return "open"
            case "and" | "or" | "xor":
                return g(kind.capitalize(), self.truth(depth - 1), self.truth(depth - 1))
            case "not":
                return g("Not", self.truth(depth - 1))
            case "equal":
                return g("Equal", self.truth(depth - 1), self.truth(depth - 1))
            case "where":
                sides = [g("Cast", self.truth(depth - 1), to=7) for _ in range(2)]  # ONNX Runtime selects no booleans
                return g("Cast", g("Where", self.truth(depth - 1), *sides), to=9)
            case "constant":
                return g.constant(self.pick(True, False), "bool")
            case "triangle":
                wide = g("Expand", g.constant(True, "bool"), self.shape())
                return g("Trilu", wide, self.small(), upper=self.pick(0, 1))
            case "buffer":
                return self.buffer()
            case "moved":
                turned = g("Transpose", self.full(self.truth(depth - 1)), perm=[0, 1, 3, 2])
                return g("Transpose", turned, perm=[0, 1, 3, 2])
            case "reshaped":
                full = self.full(self.truth(depth - 1))
                flat = g("Reshape", full, g.constant([-1]))
                return g("Reshape", flat, g("Shape", full))
        full = self.full(self.truth(depth - 1))
        one = g.constant([1])
        first = g("Slice", full, g.constant([0]), one, g.constant([3]))
        rest = g("Slice", full, one, g.constant([2**63 - 1]), g.constant([3]))
        return g("Concat", first, rest, axis=3)

    def shape(self) -> str:
        return self.graph(
            "Concat", *(self.graph("Unsqueeze", s, self.graph.constant([0])) for s in (self.queries, self.keys)), axis=0
        )

    def full(self, value: str) -> str:
        """Repeats over [B, 1, S, T]."""
        g = self.graph
        batch = g("Slice", g("Shape", "q"), g.constant([0]), g.constant([1]))
        target = g("Concat", batch, g.constant([1]), self.shape(), axis=0)
        return g("Expand", value, target)

    def picked(self) -> str:
        """The padding, picked element by element, as vectorised functions are exported."""
        g = self.graph
        batch = g("Range", g.constant(0), g.size("q", 0), g.constant(1))
        rows = g("Unsqueeze", batch, g.constant([1, 2, 3]))
        columns = g("Unsqueeze", g.positions(self.keys, row=False), g.constant([0, 1]))
        shape = g("Shape", g("Max", rows, columns))
        both = [g("Unsqueeze", g("Expand", x, shape), g.constant([-1])) for x in (rows, columns)]
        return g("GatherND", g("Cast", "pad", to=9), g("Concat", *both, axis=-1))

    def buffer(self) -> str:
        """A constant of eight by eight, sliced."""
        g = self.graph
        data = self.pick(
            np.tri(8, dtype=bool), np.tri(8, k=1, dtype=bool), np.triu(np.ones((8, 8), bool)), np.eye(8, dtype=bool),
            np.tri(8, k=2, dtype=bool) & ~np.tri(8, k=-3, dtype=bool), np.arange(64).reshape(8, 8) % 3 > 0,
        )  # fmt: skip
        ends = self.shape()
        start = self.pick(0, 1)
        starts = g.constant([start, 0])
        if start:
            ends = g("Add", ends, g.constant([1, 0]))
        return g("Slice", g.constant(data, "bool"), starts, ends, g.constant([0, 1]))

    def numbers(self, depth: int) -> str:
        """What is added to scores."""
        g = self.graph
        kind = (
            self.pick("where", "times", "add", "add", "bias", "triangle", "sub")
            if depth > 0
            else self.pick("where", "times")
        )
        fill = g.constant(self.pick(*FILLS), "float")
        zero = g.constant(0.0, "float")
        match kind:
            case "where":
                flipped = self.pick(True, False)
                return g("Where", self.truth(depth), *((fill, zero) if flipped else (zero, fill)))
            case "times":
                kept = g("Sub", g.constant(1.0, "float"), g("Cast", self.truth(depth), to=1))
                return g("Mul", kept, g.constant(self.pick(*FILLS[1:]), "float"))
            case "add":
                return g("Add", self.numbers(depth - 1), self.numbers(depth - 1))
            case "sub":
                return g("Sub", self.numbers(depth - 1), g.constant(self.pick(0.0, 1.0), "float"))
            case "bias":
                return "bias"
        wide = g("Expand", g.constant(self.pick(*FILLS[1:]), "float"), self.shape())
        return g("Trilu", wide, self.small(), upper=self.pick(0, 1))


@pytest.mark.parametrize("kind", ["truth", "numbers"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_what_is_proved_is_what_runs(kind: str, data: st.DataObject) -> None:
    frame = data.draw(st.sampled_from([CROSS, SELF]))
    program = Program(data, frame)
    mask = program.truth(4) if kind == "truth" else program.numbers(3)
    if not program.graph.nodes or mask in program.graph.inputs:
        return
    _, proof = proved(program.graph, mask, frame)
    if proof is None:
        event("not told")
        return
    opaque = sum("#n" in str(part) for _, part in proof.parts)
    event(f"{kind}: {'opaque' if opaque else 'read whole'}")
    for sizes in SIZES:
        try:
            hold(program.graph, mask, frame, proof, sizes)
        except RuntimeError:
            event("does not run")
