"""Masks whose meaning is proved, held to ONNX Runtime at several shapes, and near misses that must not be proved."""

from collections.abc import Callable

import numpy as np
import pytest
from mask_graphs import MaskGraph, hold, proved

SELF, CROSS = ("B", 2, "L", "L"), ("B", 2, "S", "T")
SIZES = ({"B": 2, "L": 5, "S": 3, "T": 6}, {"B": 1, "L": 1, "S": 1, "T": 1}, {"B": 3, "L": 7, "S": 4, "T": 2})
LOWEST = float(np.finfo(np.float32).min)


class Frame(MaskGraph):
    """A graph with Q, K, a padding [B, T] and the positions of queries [S, 1] and keys [1, T]."""

    def __init__(self, frame: tuple[str | int, ...]) -> None:
        batch, _, queries, keys = frame
        super().__init__(
            q=("float", (batch, 2, queries, 4)), k=("float", (batch, 2, keys, 4)), pad=("int", (batch, keys)),
            other=("bool", (batch, 1, queries, keys)), bias=("float", (1, 2, queries, keys)),
        )  # fmt: skip
        self.queries, self.keys = self.size("q", 2), self.size("k", 2)
        self.i, self.j = self.positions(self.queries, row=True), self.positions(self.keys, row=False)

    def from_one(self) -> str:
        return self("Range", self.constant(1), self("Add", self.keys, self.constant(1)), self.constant(1))

    def sequence(self) -> str:
        """The number of the packed sequence that a key [1, T] belongs to: how often positions did not grow by one."""
        end = self("Unsqueeze", self.keys, self.constant([0]))
        first = self("Slice", self.j, self.constant([0]), self.constant([1]), self.constant([-1]))
        longer = self("Concat", self("Sub", first, self.constant(1)), self.j, axis=-1)
        after = self("Slice", longer, self.constant([1]), self("Add", end, self.constant([1])), self.constant([-1]))
        before = self("Slice", longer, self.constant([0]), end, self.constant([-1]))
        jump = self("Not", self("Equal", self("Sub", after, before), self.constant(1)))
        return self("CumSum", self("Cast", jump, to=7), self.constant(-1))

    def padding(self) -> str:
        return self("Unsqueeze", self("Cast", "pad", to=9), self.constant([1, 2]))

    def causal(self) -> str:
        return self("LessOrEqual", self.j, self.i)

    def full(self, value: object, kind: str) -> str:
        sizes = [self("Unsqueeze", s, self.constant([0])) for s in (self.queries, self.keys)]
        return self("Expand", self.constant(value, kind), self("Concat", *sizes, axis=0))

    def hidden(self, condition: str, fill: float = LOWEST) -> str:
        """Numbers to add: 0 where the condition holds, else the fill."""
        return self("Where", condition, self.constant(0.0, "float"), self.constant(fill, "float"))

    def buffer(self, data: np.ndarray, *starts: str | None) -> str:
        """A constant cut to [S, T]."""
        zero = self.constant([0])
        begun = [self("Unsqueeze", s, zero) if s else zero for s in starts or (None, None)]
        first = self("Concat", *begun, axis=0)
        ends = self("Concat", *(self("Unsqueeze", s, zero) for s in (self.queries, self.keys)), axis=0)
        table = self.constant(data, "bool" if data.dtype == bool else "float")
        return self("Slice", table, first, self("Add", first, ends), self.constant([0, 1]))


POSITIVE: dict[str, tuple[tuple[str | int, ...], Callable[[Frame], str], str, bool]] = {
    # name: (frame, mask, kind, every row surely sees a key)
    "j <= i": (SELF, lambda g: g.causal(), "causal", True),
    "i >= j": (SELF, lambda g: g("GreaterOrEqual", g.i, g.j), "causal", True),
    "j < i + 1": (SELF, lambda g: g("Less", g.j, g("Add", g.i, g.constant(1))), "causal", True),
    "not j > i": (SELF, lambda g: g("Not", g("Greater", g.j, g.i)), "causal", True),
    "i - j >= 0": (SELF, lambda g: g("GreaterOrEqual", g("Sub", g.i, g.j), g.constant(0)), "causal", True),
    "positions as floats": (
        SELF, lambda g: g("LessOrEqual", g("Cast", g.j, to=1), g("Cast", g.i, to=1)), "causal", True,
    ),
    "tril of ones": (SELF, lambda g: g("Trilu", g.full(True, "bool"), upper=0), "causal", True),
    "tril of numbers": (SELF, lambda g: g("Cast", g("Trilu", g.full(1.0, "float"), upper=0), to=9), "causal", True),
    "triu of lowest": (SELF, lambda g: g("Trilu", g.full(LOWEST, "float"), g.constant(1), upper=1), "causal", True),
    "triu of -inf": (SELF, lambda g: g("Trilu", g.full(-np.inf, "float"), g.constant(1), upper=1), "causal", True),
    "where(causal, 0, -1e9)": (SELF, lambda g: g.hidden(g.causal(), -1e9), "causal", True),
    "(1 - causal) * lowest": (
        SELF,
        lambda g: g(
            "Mul", g("Sub", g.constant(1.0, "float"), g("Cast", g.causal(), to=1)), g.constant(LOWEST, "float")
        ),
        "causal", True,
    ),
    "lower right on self": (
        SELF, lambda g: g("LessOrEqual", g.j, g("Add", g.i, g("Sub", g.keys, g.queries))), "causal", True,
    ),
    "cumsum of ones": (
        SELF,
        lambda g: g("LessOrEqual", g("CumSum", g("Expand", g.constant(1), g("Unsqueeze", g.keys, g.constant([0]))),
                                     g.constant(0)), g("Add", g.i, g.constant(1))),
        "causal", True,
    ),
    "a buffer": (SELF, lambda g: g.buffer(np.tri(16, dtype=bool)), "causal", True),
    "a buffer of numbers": (
        SELF, lambda g: g.buffer(np.where(np.tri(16, dtype=bool), 0, LOWEST).astype(np.float32)), "causal", True,
    ),
    "upper left on cross": (CROSS, lambda g: g.causal(), "causal", True),
    "padding": (SELF, lambda g: g.padding(), "padding", False),
    "padding over queries": (
        CROSS, lambda g: g("And", g.padding(), g("GreaterOrEqual", g.i, g.constant(0))), "padding", False,
    ),
    "causal and padding": (SELF, lambda g: g("And", g.causal(), g.padding()), "causal+padding", False),
    "not (future or padded)": (
        SELF, lambda g: g("Not", g("Or", g("Greater", g.j, g.i), g("Not", g.padding()))), "causal+padding", False,
    ),
    "two numbers added": (
        SELF, lambda g: g("Add", g.hidden(g.causal()), g.hidden(g.padding())), "causal+padding", False,
    ),
    "one stacked on the other": (
        SELF,
        lambda g: g("Where", g.padding(), g.hidden(g.causal(), -1e9), g.constant(-1e9, "float")),
        "causal+padding", False,
    ),
    "window": (
        SELF, lambda g: g("And", g.causal(), g("Greater", g.j, g("Sub", g.i, g.constant(3)))), "causal+window", True,
    ),
    "window on both sides": (
        SELF, lambda g: g("LessOrEqual", g("Abs", g("Sub", g.i, g.j)), g.constant(2)), "window", True,
    ),
    "band": (
        SELF,
        lambda g: g.buffer(np.tri(16, k=2, dtype=bool) & ~np.tri(16, k=-3, dtype=bool)), "window", True,
    ),
    "blocks": (
        SELF, lambda g: g("Equal", g("Div", g.i, g.constant(4)), g("Div", g.j, g.constant(4))), "block", True,
    ),
    "chunks": (
        SELF, lambda g: g("LessOrEqual", g("Div", g.j, g.constant(4)), g("Div", g.i, g.constant(4))), "block", True,
    ),
    "one sequence": (  # positions that grow by one each belong to one sequence: queries see keys of their own
        SELF, lambda g: g("And", g.causal(), g("Equal", g.sequence(), g("Transpose", g.sequence(), perm=[1, 0]))),
        "causal", True,
    ),
    "everything": (
        CROSS, lambda g: g("Or", g("GreaterOrEqual", g.j, g.constant(0)), g.padding()), "none", True,
    ),
    "nothing hidden": (CROSS, lambda g: g.hidden(g.full(True, "bool")), "none", True),
    "bias under causal": (
        SELF, lambda g: g("Where", g.causal(), "bias", g.constant(-np.inf, "float")), "causal+float", True,
    ),
    "bias and causal": (SELF, lambda g: g("Add", "bias", g.hidden(g.causal())), "causal+float", True),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIVE)
def test_it_is_proved(name: str) -> None:
    frame, write, kind, sees = POSITIVE[name]
    graph = Frame(frame)
    mask = write(graph)
    _, proof = proved(graph, mask, frame)
    assert proof is not None
    assert proof.kind == kind, [str(part) for _, part in proof.parts]
    assert proof.sees == sees
    for sizes in SIZES:
        hold(graph, mask, frame, proof, sizes)


NEAR: dict[str, tuple[tuple[str | int, ...], Callable[[Frame], str]]] = {
    "j < i": (SELF, lambda g: g("Less", g.j, g.i)),
    "j <= i + 1": (SELF, lambda g: g("LessOrEqual", g.j, g("Add", g.i, g.constant(1)))),
    "i <= j": (SELF, lambda g: g("LessOrEqual", g.i, g.j)),
    "tril of -1": (SELF, lambda g: g("Trilu", g.full(True, "bool"), g.constant(-1), upper=0)),
    "triu": (SELF, lambda g: g("Trilu", g.full(True, "bool"), upper=1)),
    "triu of lowest, diagonal too": (SELF, lambda g: g("Trilu", g.full(LOWEST, "float"), upper=1)),
    "keys from 1": (
        SELF,
        lambda g: g("LessOrEqual", g("Unsqueeze", g.from_one(), g.constant([0])), g.i),
    ),
    "lower right on cross": (CROSS, lambda g: g("LessOrEqual", g.j, g("Add", g.i, g("Sub", g.keys, g.queries)))),
    "causal or padding": (SELF, lambda g: g("Or", g.causal(), g.padding())),
    "prefix": (SELF, lambda g: g("Or", g.causal(), g("Less", g.j, g.constant(2)))),
    "a shallow number": (SELF, lambda g: g.hidden(g.causal(), -1e4)),
    "every second": (SELF, lambda g: g("LessOrEqual", g("Mul", g.j, g.constant(2)), g("Mul", g.i, g.constant(3)))),
    "a buffer with one wrong element": (
        SELF, lambda g: g.buffer(np.tri(16, dtype=bool) ^ (np.arange(256).reshape(16, 16) == 7 * 16 + 3)),
    ),
    "a buffer one further": (SELF, lambda g: g.buffer(np.tri(16, dtype=bool), g.constant(1), None)),
    "a buffer from the end": (
        CROSS, lambda g: g.buffer(np.tri(16, dtype=bool), g("Sub", g.keys, g.queries), None),
    ),
    "positions of the batch": (
        SELF, lambda g: g("LessOrEqual", g("Unsqueeze", "pad", g.constant([1, 2])), g.i),
    ),
    "half-precision positions": (
        SELF, lambda g: g("LessOrEqual", g("Cast", g.j, to=10), g("Cast", g.i, to=10)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_a_near_miss_is_not_causal(name: str) -> None:
    frame, write = NEAR[name]
    graph = Frame(frame)
    mask = write(graph)
    _, proof = proved(graph, mask, frame)
    assert proof is None or proof.causal is None
    if proof is not None:
        for sizes in SIZES:
            try:
                hold(graph, mask, frame, proof, sizes)
            except RuntimeError:
                assert name == "a buffer from the end"


def test_a_mask_that_may_have_one_column_for_all_keys_is_not_told() -> None:
    """[B, 1, S, N] broadcasts over T keys if N is T, but also if it is 1: then it hides other keys."""
    graph = MaskGraph(q=("float", ("B", 2, "S", 4)), m=("bool", ("S", "N")))
    columns = graph.positions(graph.size("m", 1), row=False)
    mask = graph("LessOrEqual", columns, graph.positions(graph.size("q", 2), row=True))
    assert proved(graph, mask, ("B", 2, "S", "T"))[1] is None


def test_rows_laid_out_anew_are_not_taken_for_their_transpose() -> None:
    """[S, T] reshaped to [T, S] keeps the elements' order, not their rows and columns."""
    graph = Frame(CROSS)
    sizes = [graph("Unsqueeze", s, graph.constant([0])) for s in (graph.keys, graph.queries)]
    turned = graph("Reshape", graph("And", graph.causal(), graph.full(True, "bool")), graph("Concat", *sizes, axis=0))
    mask = graph("Transpose", turned, perm=[1, 0])
    _, proof = proved(graph, mask, CROSS)
    if proof is not None:
        hold(graph, mask, CROSS, proof, SIZES[0])


def test_a_buffer_that_leaves_one_element_out() -> None:
    graph = Frame(SELF)
    mask = graph.buffer(np.tri(5, k=3, dtype=bool))
    _, proof = proved(graph, mask, SELF)
    assert proof is not None and proof.kind == "window"
    hold(graph, mask, SELF, proof, SIZES[0])


def test_a_buffer_too_small_may_be_one_column_for_all_keys() -> None:
    """What is left of two columns after the first is one: it broadcasts over any number of keys."""
    graph = Frame(SELF)
    mask = graph.buffer(np.ones((2, 2), bool) ^ np.eye(2, dtype=bool), graph.constant(1), graph.constant(1))
    _, proof = proved(graph, mask, SELF)
    assert proof is not None
    hold(graph, mask, SELF, proof, SIZES[0])


def test_a_window_on_the_wrong_side_hides_rows() -> None:
    graph = Frame(SELF)
    mask = graph("And", graph.causal(), graph("Greater", graph.j, graph("Add", graph.i, graph.constant(-0))))
    _, proof = proved(graph, mask, SELF)
    assert proof is not None and not proof.sees
    hold(graph, mask, SELF, proof, SIZES[0])


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_any_rank_broadcasts_from_the_right(rank: int) -> None:
    graph = Frame(SELF)
    mask = graph.causal()
    if rank > 2:
        mask = graph("Unsqueeze", mask, graph.constant(list(range(rank - 2))))
    _, proof = proved(graph, mask, SELF)
    assert proof is not None and proof.kind == "causal"


def test_queries_and_keys_exchanged_are_not_causal() -> None:
    graph = Frame(SELF)
    mask = graph("Transpose", graph.causal(), perm=[1, 0])
    _, proof = proved(graph, mask, SELF)
    assert proof is not None and "causal" not in proof.kind
    hold(graph, mask, SELF, proof, SIZES[0])


@pytest.mark.parametrize("axis", [0, 2])
def test_a_stack_picked_by_head_is_read_through_its_parts(axis: int) -> None:
    """Concatenated parts of known sizes: the first head is causal, the second sees everything."""
    graph = Frame(SELF)
    parts = [graph("Unsqueeze", part, graph.constant([0])) for part in (graph.causal(), graph.full(True, "bool"))]
    mask = graph("Concat", *parts, axis=0)
    if axis == 2:
        mask = graph("Transpose", graph("Transpose", mask, perm=[1, 2, 0]), perm=[2, 0, 1])
    _, proof = proved(graph, mask, SELF)
    assert proof is not None and proof.kind == "bool" and proof.sees
    hold(graph, mask, SELF, proof, SIZES[0])
